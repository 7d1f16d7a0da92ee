"""Whether a model directory is the one that was asked for: `python -m kubeformer_runtime.model.check`.

It reads a server's settings (KUBEFORMER_SETTINGS) and compares the digest in them with that of the directory, ahead of
an engine that does not do so itself. Exit code 0: it is; 78: it is not, and the termination message says why.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from kubeformer.contract.names import ENV_SETTINGS, SETTINGS_PATH, TERMINATION_MESSAGE_PATH, ExitCode, Reason
from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.model.digest import digest
from kubeformer_runtime.model.errors import ModelError

logger = logging.getLogger("kubeformer.check")


def check(settings: ServerSettings) -> str:
    """The digest of the model that the settings name.

    Raises:
        ModelError: there is none, or it is another than the settings say (reasons ModelNotFound, ModelInvalid).
    """
    found, wanted = digest(settings.model.path), settings.model.digest
    if wanted is not None and found != wanted:
        raise ModelError(
            f"{settings.model.uri} has digest {found}, but {wanted} was asked for: the files have changed since; "
            "publish the model again or correct the digest",
            Reason.MODEL_INVALID,
        )
    return found


def main(environ: Mapping[str, str]) -> int:
    """Check, and leave the reason where Kubernetes finds it. Returns the exit code."""
    path = Path(environ.get(ENV_SETTINGS, SETTINGS_PATH))
    try:
        settings = ServerSettings.model_validate_json(path.read_bytes())
        logger.info("%s is %s", settings.model.uri, check(settings))
    except (OSError, ValidationError) as error:
        return _fail(Reason.SETTINGS_INVALID, f"{path}: {error}", environ)
    except ModelError as error:
        return _fail(error.reason, str(error), environ)
    return ExitCode.SUCCEEDED


def _fail(reason: str, message: str, environ: Mapping[str, str]) -> int:
    logger.error("%s: %s", reason, message)
    last_words = Path(environ.get("KUBEFORMER_TERMINATION_MESSAGE_PATH", TERMINATION_MESSAGE_PATH))
    last_words.write_text(json.dumps({"reason": reason, "message": message[:2000]}, ensure_ascii=False))
    return ExitCode.INVALID


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(main(os.environ))

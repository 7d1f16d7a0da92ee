"""One rank of a TrainingJob: `python -m kubeformer_runtime.trainer`, alone or under torchrun.

Environment: KUBEFORMER_SETTINGS (path of the settings), KUBEFORMER_SOCKET (the launcher's, optional),
KUBEFORMER_ATTEMPT, and torchrun's RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
Exit codes: contract/names.py.
"""

import os
import sys
import traceback
from pathlib import Path

from pydantic import ValidationError

from kubeformer.contract.job import JobSettings
from kubeformer.contract.names import ENV_SETTINGS, SETTINGS_PATH, ExitCode, Reason
from kubeformer.contract.progress import Failure, Progress
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.heartbeat import Heartbeat
from kubeformer_runtime.trainer.base import fetch_base
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.stop import StopWish
from kubeformer_runtime.trainer.tracking import tracked


def main() -> ExitCode:
    """Reads the settings and runs. Raises what is a fault of the machine or of a peer."""
    stop, heartbeat = StopWish(), Heartbeat.from_environment()
    stop.listen()
    path = Path(os.environ.get(ENV_SETTINGS, SETTINGS_PATH))
    try:
        settings = JobSettings.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValidationError) as error:
        message = f"the settings in {path} cannot be read: {error}"
        print(message, file=sys.stderr, flush=True)
        failure = Failure(reason=Reason.SETTINGS_INVALID, message=message)
        heartbeat.send(Progress(phase="Failed", failure=failure))
        return ExitCode.INVALID
    rank = int(os.environ.get("RANK", "0"))
    heartbeat.send(Progress(phase="Preparing", rank=rank))
    try:
        listener = tracked(settings, heartbeat, rank)

        def beat() -> None:
            listener.send(Progress(phase="Preparing", rank=rank))

        fetch_base(settings, beat, int(os.environ.get("LOCAL_RANK", "0")))
    except (InvalidJob, DataError) as error:
        print(f"{error.reason}: {error}", file=sys.stderr, flush=True)
        heartbeat.send(Progress(phase="Failed", rank=rank, failure=Failure(reason=error.reason, message=str(error))))
        return ExitCode.INVALID
    # Torch takes seconds to import: after the settings are known to be good, and a first sign of life.
    from kubeformer_runtime.trainer.report import Clock
    from kubeformer_runtime.trainer.run import run

    return run(settings, os.environ, listener, stop, Clock())


if __name__ == "__main__":
    try:
        code = int(main())
    except BaseException:
        traceback.print_exc()
        code = 1
    # Without Python's and gloo's farewells, which can wait for peers that are gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

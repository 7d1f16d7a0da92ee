"""The name of a model. Standard library only.

`digest(directory)` hashes what makes a model answer as it does: weights, config, tokenizer, chat template. It is
the model's name in status, in deployments and in metrics. kubeformer.json, which tells where the model came
from, carries that name and so lies outside of it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from kubeformer.contract.names import Reason
from kubeformer_runtime.model.errors import ModelError

# What belongs to a model beside its *.safetensors files.
NAMES = frozenset(
    {
        "config.json",
        "adapter_config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "chat_template.jinja",
        "chat_template.json",
    }
)
CHUNK = 1 << 20


def model_files(directory: str | Path) -> list[Path]:
    """The files that the digest covers, sorted by name."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelError(f"there is no model directory {directory}", Reason.MODEL_NOT_FOUND)
    files = [path for path in directory.iterdir() if path.name in NAMES or path.suffix == ".safetensors"]
    return sorted((path for path in files if path.is_file()), key=lambda path: path.name)


def digest(directory: str | Path) -> str:
    """`sha256:` and 64 hexadecimal digits over name and content of each file of the model.

    Raises:
        ModelError: no such directory, or no model in it (reason ModelNotFound).
    """
    files = model_files(directory)
    if not files:
        raise ModelError(f"{directory} holds no model (no config.json, no *.safetensors)", Reason.MODEL_NOT_FOUND)
    return digest_of_files({path.name: file_digest(path) for path in files})


def digest_of_files(digests: Mapping[str, str]) -> str:
    """One digest over those of files by name.

    It hashes one line a file, sorted, as `sha256sum` prints them, so it can be checked without this code:
    LC_ALL=C; sha256sum FILES... | sort -k2 | sha256sum
    """
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def file_digest(path: Path) -> str:
    """SHA-256 of one file, in hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()

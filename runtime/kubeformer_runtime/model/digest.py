"""The name of a model, and its way onto storage. Standard library only.

`digest(directory)` hashes what makes a model answer as it does: weights, config, tokenizer, chat template. It is
the model's name in status, in deployments and in metrics. kubeformer.json, which tells where the model came
from, carries that name and so lies outside of it.
`publish(directory, write)` makes a directory appear whole or not at all.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from kubeformer.contract.names import Reason
from kubeformer_runtime.model.errors import ModelError

# What belongs to a model beside its *.safetensors files.
NAMES = frozenset(
    {
        "config.json",
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
    whole = hashlib.sha256()
    for path in files:
        # One line a file, as sha256sum prints it, so that the digest can be checked without this code.
        whole.update(f"{file_digest(path)}  {path.name}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def file_digest(path: Path) -> str:
    """SHA-256 of one file, in hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()


def publish(directory: str | Path, write: Callable[[Path], None]) -> None:
    """Replaces DIRECTORY by what `write` puts into a fresh one, in one rename.

    `write` gets an empty directory beside the final one. What it wrote is flushed to storage before the
    rename, so that after a crash there is the old directory or the new one, whole. Where an old one exists it
    is moved aside for the moment of the swap; a crash right there is mended by the next call.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (directory.with_name(f".{directory.name}.{suffix}") for suffix in ("new", "old"))
    if old.exists() and not directory.exists():
        old.rename(directory)
    for left_over in (fresh, old):
        shutil.rmtree(left_over, ignore_errors=True)
    fresh.mkdir()
    write(fresh)
    flush(fresh)
    if directory.exists():
        directory.rename(old)
    fresh.rename(directory)
    _fsync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def flush(directory: Path) -> None:
    """Forces every file below DIRECTORY, and the directories themselves, onto storage."""
    for folder, _, names in os.walk(directory):
        for name in names:
            _fsync(Path(folder) / name)
        _fsync(Path(folder))


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

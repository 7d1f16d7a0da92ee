"""Durable writes: a file or directory is either there in full, also after a power cut, or not at all."""

import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LEFTOVER = re.compile(r"[0-9]+\.(incomplete|replaced)")


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on storage."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory (new files, renames) are on storage."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` atomically: a reader sees the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, content.encode())


@contextmanager
def new_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a directory under a temporary name; it gets its name when the block ends without an error.

    With `replace` an existing directory of that name is moved away first and removed afterwards; there is
    no moment in which a reader finds half of either, but a short one in which it finds none. Without
    `replace`, FileExistsError where the name is taken. A name has one writer at a time: what an earlier one
    left, killed half-way, is cleared.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if _LEFTOVER.fullmatch(leftover.name.removeprefix(f".{path.name}.")):
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                sync_file(Path(folder, name))
            sync_directory(Path(folder))
        if path.exists():
            if not replace:
                raise FileExistsError(f"{path} exists")
            old = path.with_name(f".{path.name}.{os.getpid()}.replaced")
            os.rename(path, old)
            os.rename(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise

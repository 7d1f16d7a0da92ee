"""One file from far away to this disk: resumable, verified, and never seen half-written.

Bytes go to `.NAME.partial`, with the version (ETag, revision) that they belong to beside them in `.NAME.version`. A
connection that breaks goes on where it broke, also in another process, as long as the version is still the same.
Only a file whose size and digest are right gets its name. The version stays, so that the next start can ask the
server whether anything is new.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepared import Beat
from kubeformer_runtime.durable import sync_directory, write_text

ATTEMPTS = 8  # in a row without a byte of progress
CHUNK_BYTES = 1 << 18


class BrokenTransferError(Exception):
    """The connection broke, or the server is busy: trying again may help."""


class ChangedError(Exception):
    """The remote file is no longer the one that was begun."""


@dataclass(frozen=True, slots=True)
class Body:
    """An answer of the server: bytes from `offset` on, of a file of `size` bytes and this version, where known."""

    offset: int
    size: int | None
    version: str | None
    chunks: Iterator[bytes]


# Opens the file at an offset, if it still has the version; None: it is the one that was fetched before.
Open = Callable[[int, str | None, bool], AbstractContextManager[Body | None]]


@dataclass(frozen=True, slots=True)
class Remote:
    """A file elsewhere.

    `open(offset, version, fetched)` raises BrokenTransferError, ChangedError or DataError; with `fetched` the whole
    file of that version is here already. `digest` is ALGORITHM:HEX, of sha256, md5, or git (a blob's SHA-1).
    """

    uri: str
    path: Path
    open: Open
    size: int | None = None
    version: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a file is."""

    uri: str
    done: int
    total: int | None


def fetch_file(
    remote: Remote,
    field: str,
    beat: Beat,
    progress: Callable[[Progress], None] = lambda _: None,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Bring one file, or leave the one that is there if it is still right. Raises DataError."""
    partial, note = _beside(remote.path, "partial"), _beside(remote.path, "version")
    try:
        remote.path.parent.mkdir(parents=True, exist_ok=True)
        failures = 0
        while True:
            beat()
            before = _size(partial)
            try:
                if _once(remote, partial, note, field, beat, progress):
                    return
            except ChangedError:
                partial.unlink(missing_ok=True)
                note.unlink(missing_ok=True)
                failures += 1
                why: Exception = ChangedError(f"{remote.uri} kept changing while it was read")
            except BrokenTransferError as error:
                failures = 0 if _size(partial) > before else failures + 1
                why = error
            if failures >= ATTEMPTS:
                raise DataError(
                    Reason.DATA_NOT_FOUND, f"{field}: {remote.uri} cannot be read to its end: {why}. Try again later"
                )
            for _ in range(min(2**failures, 16)):
                beat()
                wait(0.25)
    except OSError as error:
        if is_disk_full(error):
            raise DataError(
                Reason.DATA_INVALID,
                f"{field}: no space is left at {remote.path.parent} for {remote.uri}; give the pod more ephemeral "
                "storage, or put the data on a claim (pvc://)",
            ) from error
        raise DataError(Reason.DATA_NOT_FOUND, f"{field}: {remote.path} cannot be written: {error}") from error


def _once(
    remote: Remote, partial: Path, note: Path, field: str, beat: Beat, progress: Callable[[Progress], None]
) -> bool:
    version = note.read_text() or None if note.is_file() else None
    whole = remote.path.is_file() and not partial.exists()
    if remote.version is not None and version != remote.version:
        version, whole = remote.version, False
        partial.unlink(missing_ok=True)
    if whole and remote.version is not None:
        return True  # the version's digest was verified when it came
    offset = _size(partial) if version is not None else 0
    with remote.open(offset, version, whole and version is not None) as body:
        if body is None:
            return True
        if body.offset == 0 or body.version != version:
            if body.offset:
                raise ChangedError
            offset = 0
        size = body.size if body.size is not None else remote.size
        write_text(note, body.version or "")
        with partial.open("r+b" if offset else "wb") as file:
            file.truncate(offset)
            file.seek(offset)
            for chunk in body.chunks:
                beat()
                file.write(chunk)
                progress(Progress(remote.uri, file.tell(), size))
            file.flush()
            os.fsync(file.fileno())
    done = _size(partial)
    if size is not None and done < size:
        raise BrokenTransferError(f"the connection broke after {done:,} of {size:,} bytes")
    _verify(remote, partial, size, field, beat)
    os.replace(partial, remote.path)
    sync_directory(remote.path.parent)
    return True


def _verify(remote: Remote, partial: Path, size: int | None, field: str, beat: Beat) -> None:
    wrong = None
    sizes = [promised for promised in (size, remote.size) if promised is not None and promised != _size(partial)]
    if sizes:
        wrong = f"has {_size(partial):,} bytes, not {sizes[0]:,}"
    elif remote.digest is not None:
        found = _digest(partial, remote.digest.partition(":")[0], beat)
        if found != remote.digest:
            wrong = f"has the checksum {found}, not {remote.digest}"
    if wrong is not None:
        partial.unlink()
        raise DataError(
            Reason.DATA_INVALID,
            f"{field}: {remote.uri} {wrong}; nothing of it is used. Upload it again, or correct the digest",
        )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error is this machine's, and not the connection's."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _digest(path: Path, algorithm: str, beat: Beat) -> str:
    if algorithm == "git":
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES * 16):
            beat()
            digest.update(chunk)
    return f"{algorithm}:{digest.hexdigest()}"


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0

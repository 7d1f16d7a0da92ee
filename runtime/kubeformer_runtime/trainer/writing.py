"""Tensors that go on changing, written to storage as they are at one moment, at the least cost to who changes them.

`Live` is copy-on-write in software. Between two steps of the optimiser weights and moments lie still, so a thread in
the background reads them where they are, while the network runs forward and backward. Only what it has not reached
when the next step is about to change them is copied, at the speed of memory, into a `Room` that was made beforehand.

`write` goes around the page cache (O_DIRECT) where the file system allows it: for 1.6 GB that takes 0.05 s of
processor time instead of 2. Bytes pass through one small buffer: copied, summed up and written while in the cache.
"""

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kubeformer_runtime.trainer.sums import BLOCK_BYTES, Sums
from kubeformer_runtime.trainer.tensorfile import TensorFile, header

PIECE_BYTES = BLOCK_BYTES  # read from live tensors at once: for a millisecond nobody may change them
PAGE_BYTES = 4096  # what O_DIRECT wants lengths and addresses to be a multiple of

Bytes = NDArray[np.uint8]


class Disk:
    """The system calls of writing a file; tests put one that fails in its place."""

    def open(self, path: Path) -> int:
        """A new file, around the page cache where that is possible."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            return os.open(path, flags | os.O_DIRECT, 0o644)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        return os.open(path, flags, 0o644)

    def write(self, descriptor: int, content: memoryview, at: int) -> None:
        """All of the content, at an offset."""
        while content:
            done = os.pwrite(descriptor, content, at)
            at, content = at + done, content[done:]

    def finish(self, descriptor: int, size: int) -> None:
        """Cuts off what is padding, and waits until the rest is on storage."""
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)


class Room:
    """Memory for what has to be copied: large pages, touched once, used again and again."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._lock = threading.Lock()

    def take(self, size: int) -> Tensor:
        """At least `size` bytes; the same ones every time."""
        with self._lock:
            if self._memory is None or self._memory.numel() < size:
                self._memory = None
                pages = mmap.mmap(-1, max(size, 1))
                if hasattr(mmap, "MADV_HUGEPAGE"):
                    try:
                        pages.madvise(mmap.MADV_HUGEPAGE)
                    except OSError:
                        pass  # small pages then
                memory = np.frombuffer(pages, np.uint8)
                memory[::PAGE_BYTES] = 0
                self._memory = torch.from_numpy(memory)
            return self._memory


class Live:
    """The bytes of tensors at the moment of its making, while others may change them after `freeze`."""

    def __init__(self, tensors: Sequence[Tensor], still: Sequence[bool], room: Room) -> None:
        flat = [_bytes_of(tensor) for tensor in tensors]
        self._tensors = flat
        self._bytes: list[Bytes] = [tensor.numpy() for tensor in flat]
        self._moving = [
            not quiet and tensor.device.type == "cpu" and tensor.is_contiguous()
            for tensor, quiet in zip(tensors, still, strict=True)
        ]
        self._room, self._lock = room, threading.Lock()
        self._index, self._start = 0, 0  # everything before has been read

    def read(self, index: int, start: int, target: Bytes) -> None:
        """Copies bytes of one tensor, from `start` on. Calls come in order."""
        with self._lock:
            target[:] = self._bytes[index][start : start + len(target)]
            self._index, self._start = index, start + len(target)

    def freeze(self) -> int:
        """Has to be called before the tensors change; returns how many bytes it had to copy."""
        with self._lock:
            todo = [index for index in range(self._index, len(self._bytes)) if self._moving[index]]
            if not todo:
                return 0
            first = {self._index: self._start}
            room, at = self._room.take(sum(len(self._bytes[index]) for index in todo)), 0
            copied = 0
            for index in todo:
                size, skip = len(self._bytes[index]), first.get(index, 0)
                place = room[at : at + size]
                place[skip:].copy_(self._tensors[index][skip:])
                self._bytes[index], self._moving[index] = place.numpy(), False
                at, copied = at + size, copied + size - skip
            return copied


def _bytes_of(tensor: Tensor) -> Tensor:
    """A tensor's bytes on the CPU: the same memory where it is there and in one piece, else a copy."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def write(directory: Path, files: Sequence[TensorFile], live: Live, disk: Disk) -> dict[str, str]:
    """Writes files, whose tensors one after the other are those of `live`; returns a digest (sums.py) of each by name.

    Raises OSError where storage refuses.
    """
    pages = mmap.mmap(-1, PIECE_BYTES)
    piece, digests, index = np.frombuffer(pages, np.uint8), dict[str, str](), 0
    for file in files:
        stream = _Stream(directory / file.name, piece, disk)
        try:
            stream.put(np.frombuffer(header(file.blocks), np.uint8))
            for block in file.blocks:
                stream.pull(live, index, block.tensor.nbytes)
                index += 1
            digests[file.name] = stream.end()
        finally:
            stream.close()
    return digests


class _Stream:
    """A file that is written from one buffer."""

    def __init__(self, path: Path, piece: Bytes, disk: Disk) -> None:
        self._piece, self._disk, self._filled, self._written = piece, disk, 0, 0
        self._sums = Sums()
        self._descriptor = disk.open(path)

    def put(self, content: Bytes) -> None:
        start = 0
        while start < len(content):
            size = min(len(content) - start, len(self._piece) - self._filled)
            self._piece[self._filled : self._filled + size] = content[start : start + size]
            start += size
            self._advance(size)

    def pull(self, live: Live, index: int, size: int) -> None:
        start = 0
        while start < size:
            more = min(size - start, len(self._piece) - self._filled)
            live.read(index, start, self._piece[self._filled : self._filled + more])
            start += more
            self._advance(more)

    def end(self) -> str:
        size = self._written + self._filled
        self._flush()
        self._disk.finish(self._descriptor, size)
        return self._sums.digest()

    def close(self) -> None:
        os.close(self._descriptor)

    def _advance(self, size: int) -> None:
        self._filled += size
        if self._filled == len(self._piece):
            self._flush()

    def _flush(self) -> None:
        if not self._filled:
            return
        self._sums.update(self._piece[: self._filled])
        padded = -(-self._filled // PAGE_BYTES) * PAGE_BYTES
        self._piece[self._filled : padded] = 0
        self._disk.write(self._descriptor, self._piece[:padded].data, self._written)
        self._written += self._filled
        self._filled = 0

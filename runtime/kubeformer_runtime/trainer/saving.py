"""Saving in the background: training waits only until weights and moments may change again.

    saver.begin(state, files)     after a step: takes note of where the tensors lie, and returns
    saver.before_change()         before the optimiser's next step: copies what the writer has not reached yet
    saver.outcome()               now and then: what has become of it

At most one is in flight. The thread is nicer than training, which comes first on busy cores.

**What follows a failure.** It is said, and what was half written is removed; the checkpoints before are not touched.
The next try comes after RETRY_SECONDS, also at the end of a run and after SIGTERM. After ATTEMPTS failures in a row the
job ends: with reason StorageFull, where there is no space (its owner has to make some), else by StorageLost, a fault
of the machine after which the launcher starts the ranks again.
"""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kubeformer.contract.names import Reason
from kubeformer_runtime.trainer import checkpoint
from kubeformer_runtime.trainer.checkpoint import Written
from kubeformer_runtime.trainer.errors import InvalidJob, StorageLost
from kubeformer_runtime.trainer.state import State
from kubeformer_runtime.trainer.tensorfile import TensorFile
from kubeformer_runtime.trainer.writing import Disk, Live, Room, write

ATTEMPTS = 3
RETRY_SECONDS = 15.0
PART_SECONDS = 900.0  # how long rank 0 waits for what other ranks write
POLL_SECONDS = 0.02
NICE = 5  # by how much the thread that writes gives way
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of one attempt: a checkpoint, or why there is none (neither on ranks that only help)."""

    step: int
    seconds: float  # from begin to its end
    written: Written | None = None
    error: OSError | None = None


class Board(Protocol):
    """Where ranks leave notes for each other; see World."""

    rank: int
    size: int

    def put(self, key: str, text: str) -> None:
        """Leaves a note."""
        ...

    def get(self, key: str) -> str | None:
        """Reads a note; None where there is none yet."""
        ...


class Saver:
    """One rank's writer. Where it writes `parts`, every rank calls `begin` at the same steps; else rank 0 alone."""

    def __init__(
        self, directory: Path, keep: int, board: Board, token: str, *, parts: bool = False, disk: Disk | None = None
    ) -> None:
        self.directory, self.keep = directory, keep
        self.failures = 0  # in a row
        self.last: OSError | None = None
        self._board, self._token, self.parts, self._disk = board, token, parts, disk or Disk()
        self._room = Room()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._begun = 0

    @property
    def busy(self) -> bool:
        """Whether one is in flight, or its outcome has not been asked for."""
        return self._thread is not None

    @property
    def given_up(self) -> bool:
        """Whether the rule says that the job ends."""
        return self.failures >= ATTEMPTS

    def prepare(self, size: int) -> None:
        """Makes room for `size` bytes, in the background."""
        threading.Thread(target=_nicely, args=(lambda: self._room.take(size),), daemon=True).start()

    def begin(self, state: State, files: Sequence[TensorFile]) -> None:
        """Starts to write a checkpoint of `state` and what the tensors are now. None may be in flight."""
        if self._thread is not None:
            raise RuntimeError("a checkpoint is in flight already")
        self._begun += 1
        if not self.parts and self._board.rank:
            return
        blocks = [block for file in files for block in file.blocks]
        self._live = live = Live([b.tensor for b in blocks], [b.still for b in blocks], self._room)
        content, step, number, began = state.model_dump_json(indent=1), state.step, self._begun, time.monotonic()

        def work() -> None:
            written, error = None, None
            try:
                written = self._write(step, number, content, files, live)
            except OSError as failure:
                error = failure
            except Exception as failure:  # a thread has nobody to raise to
                error = OSError(errno.EIO, f"{type(failure).__name__}: {failure}")
            self._outcome = Outcome(step, time.monotonic() - began, written, error)

        self._thread = threading.Thread(target=_nicely, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def before_change(self) -> int:
        """Call it before tensors that `begin` was given change. Returns how many bytes had to be copied."""
        return 0 if self._live is None else self._live.freeze()

    def outcome(self) -> Outcome | None:
        """What has become of the one in flight; None while it is still written, or where there is none."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread.join()
        outcome, self._thread, self._live, self._outcome = self._outcome, None, None, None
        assert outcome is not None
        self.failures = self.failures + 1 if outcome.error is not None else 0
        self.last = outcome.error or self.last
        return outcome

    def wait(self, beat: Callable[[], None]) -> Outcome | None:
        """Waits for the one in flight, where there is one."""
        while self._thread is not None:
            self._thread.join(POLL_SECONDS)
            beat()
            if (outcome := self.outcome()) is not None:
                return outcome
        return None

    @property
    def full(self) -> bool:
        """Whether the last failure was for want of space."""
        return self.last is not None and self.last.errno in FULL

    def surrender(self, full: bool) -> InvalidJob | StorageLost:
        """The error that ends the job, once a rank has `given_up`."""
        why = f" (the last: {self.last})" if self.last is not None else ""
        what = f"{ATTEMPTS} checkpoints in a row could not be written to {self.directory}{why}"
        if full:
            return InvalidJob(
                f"{what}; make room there, set spec.checkpoint.keep lower (now {self.keep}) or give the job another "
                "spec.checkpoint.storage; it goes on from the last checkpoint",
                Reason.STORAGE_FULL,
            )
        return StorageLost(f"{Reason.STORAGE_LOST}: {what}")

    def _write(self, step: int, number: int, state: str, files: Sequence[TensorFile], live: Live) -> Written | None:
        rank, size = self._board.rank, self._board.size if self.parts else 1
        key = f"{self._token}/{number}"
        folder = None
        try:
            folder = checkpoint.begin(self.directory, step, f"{self._token}-{number}")
            digests = write(folder, files, live, self._disk)
            if rank:
                self._board.put(f"{key}/{rank}", json.dumps(digests))
                return None
            for other in range(1, size):
                digests |= self._part(f"{key}/{other}", other)
            return checkpoint.commit(folder, step, state, digests, self.keep)
        except BaseException as error:
            if rank:
                self._board.put(
                    f"{key}/{rank}", json.dumps({"errno": getattr(error, "errno", None), "why": str(error)})
                )
            elif folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _part(self, key: str, rank: int) -> dict[str, str]:
        until = time.monotonic() + PART_SECONDS
        while (text := self._board.get(key)) is None:
            if time.monotonic() > until:
                raise OSError(errno.ETIMEDOUT, f"rank {rank} has not written its part within {PART_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)
        told: dict[str, str] = json.loads(text)
        if "why" in told:
            raise OSError(told["errno"] or errno.EIO, f"rank {rank}: {told['why']}")
        return told


def _nicely(work: Callable[[], object]) -> None:
    """Runs work in this thread at a lower priority (Linux gives each thread its own).

    Not at the lowest: a thread that is not let run while it holds the interpreter's lock keeps training from it.
    """
    thread = threading.get_native_id()
    try:
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICE))
    except OSError:
        pass  # not allowed here: at the priority of the rest
    work()

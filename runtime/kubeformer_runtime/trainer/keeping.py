"""When to save, and what follows: the loop's end of checkpoints. The work itself is saving.py's, in the background.

Three moments of a step concern it: its sum over ranks carries `flags`, `before_change` comes right before the
optimiser, `stepped` after it. `save` is for the end of a run and for a stop: it returns when all is on storage.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubeformer.contract.job import Checkpoint
from kubeformer.contract.progress import CheckpointRecord
from kubeformer_runtime.trainer import saving
from kubeformer_runtime.trainer.interval import automatic, mean_time_between_failures
from kubeformer_runtime.trainer.report import Clock, Reporter
from kubeformer_runtime.trainer.saving import Outcome, Saver
from kubeformer_runtime.trainer.state import State
from kubeformer_runtime.trainer.tensorfile import TensorFile
from kubeformer_runtime.trainer.world import World
from kubeformer_runtime.trainer.writing import Disk

FIRST_SECONDS = 60.0  # the first checkpoint where the interval is Auto: it is what the cost is measured by
LOST, FULL = 1.0, float(1 << 20)  # flags of a rank that gives up; in a sum over ranks one FULL outweighs all LOST


@dataclass(slots=True)
class Cost:
    """What checkpoints cost training, measured as it goes."""

    stall: float = 0.0  # seconds the last one kept the loop waiting
    copied: int = 0  # bytes that had to be copied meanwhile
    duration: float = 0.0  # seconds from its begin until it was on storage
    busy_seconds: float = 0.0  # of steps while one was written
    busy_steps: int = 0
    calm_seconds: float = 0.0  # of the other steps
    calm_steps: int = 0
    checkpoints: int = 0

    def of_one(self) -> float:
        """Seconds of training that one checkpoint takes: the wait, and by how much it slows the steps beside it."""
        if not self.busy_steps or not self.calm_steps or not self.checkpoints:
            return self.stall
        slower = self.busy_seconds / self.busy_steps - self.calm_seconds / self.calm_steps
        return self.stall + max(0.0, slower) * self.busy_steps / self.checkpoints


class Keeper:
    """Decides on checkpoints of one run and tells the reporter of them."""

    def __init__(
        self,
        settings: Checkpoint,
        world: World,
        reporter: Reporter,
        clock: Clock,
        *,
        workers: int = 1,
        parts: bool = False,
        disk: Disk | None = None,
    ) -> None:
        self.world, self.reporter, self.clock, self.workers = world, reporter, clock, workers
        self.interval_seconds, self.cost = settings.interval_seconds, Cost()
        # One name for what ranks write together, that no earlier start used. Six bytes fit into a double.
        token = int.from_bytes(os.urandom(6), "big") if world.first else 0
        self.saver = Saver(
            Path(settings.directory), settings.keep, world, f"{int(world.sum([token])[0]):012x}", parts=parts, disk=disk
        )
        self._began = clock.monotonic()
        self._failed = False

    def start(self, size: int) -> None:
        """Training begins: time counts from now. `size`: bytes of weights and moments."""
        self._began = self.clock.monotonic()
        if self.world.first or self.saver.parts:
            self.saver.prepare(size)

    def interval(self, state: State) -> float:
        """Seconds between two begins."""
        if self._failed:
            return saving.RETRY_SECONDS
        if self.interval_seconds is not None:
            return float(self.interval_seconds)
        if not self.cost.checkpoints:
            return FIRST_SECONDS
        mtbf = mean_time_between_failures(state.seconds, state.failures, self.workers)
        return automatic(self.cost.of_one(), self.cost.duration, mtbf)

    def flags(self, state: State) -> tuple[float, float]:
        """What this rank brings to the sum over ranks: whether to save after this step, and whether to give up."""
        due = self.world.first and not self.saver.busy and self.clock.monotonic() - self._began >= self.interval(state)
        return float(due), self._despair()

    def before_change(self) -> None:
        """Right before the optimiser changes weights and moments."""
        if self.saver.busy:
            started = time.monotonic()
            self.cost.copied += self.saver.before_change()
            self.cost.stall += time.monotonic() - started

    def stepped(self, seconds: float) -> None:
        """After a step: takes its time, and looks what has become of a checkpoint in flight."""
        if self.saver.busy:
            self.cost.busy_seconds, self.cost.busy_steps = self.cost.busy_seconds + seconds, self.cost.busy_steps + 1
            if (outcome := self.saver.outcome()) is not None:
                self._hear(outcome)
        else:
            self.cost.calm_seconds, self.cost.calm_steps = self.cost.calm_seconds + seconds, self.cost.calm_steps + 1

    def begin(self, state: State, files: Callable[[], Sequence[TensorFile]]) -> None:
        """Starts to write, where nothing is in flight on this rank any more."""
        if self.saver.busy and (outcome := self.saver.wait(self.reporter.beat)) is not None:
            self._hear(outcome)
        started = time.monotonic()
        self._began = self.clock.monotonic()
        self.saver.begin(state, files())
        self.cost.stall, self.cost.copied = time.monotonic() - started, 0

    def save(self, state: State, files: Callable[[], Sequence[TensorFile]]) -> None:
        """Writes the state, again and again where it fails; every rank returns when it is on storage.

        Raises:
            InvalidJob, StorageLost: see saving.py; on every rank.
        """
        while True:
            self.begin(state, files)
            self.world.on_first(self._finish, self.reporter.beat)
            if not self.world.first:
                self._finish()
            failed, hopeless = self.world.sum([float(self._failed), self._despair()])
            if hopeless:
                self.give_up(hopeless)
            if not failed:
                return
            self._failed = True
            until = time.monotonic() + saving.RETRY_SECONDS
            while time.monotonic() < until:
                self.reporter.beat()
                time.sleep(saving.POLL_SECONDS)

    def give_up(self, hopeless: float) -> None:
        """Ends the job, as the rule says. Every rank calls it at the same moment, with the sum of their flags."""
        raise self.saver.surrender(full=hopeless >= FULL)

    def _despair(self) -> float:
        return (FULL if self.saver.full else LOST) if self.saver.given_up else 0.0

    def _finish(self) -> None:
        if (outcome := self.saver.wait(self.reporter.beat)) is not None:
            self._hear(outcome)

    def _hear(self, outcome: Outcome) -> None:
        self._failed = outcome.error is not None
        if outcome.error is not None:
            self.reporter.log(
                f"warning: the checkpoint of step {outcome.step} could not be written ({outcome.error}); "
                f"try {self.saver.failures} of {saving.ATTEMPTS}, the next in {saving.RETRY_SECONDS:.0f} s"
            )
        self.cost.duration = outcome.seconds
        if (written := outcome.written) is not None:
            self.cost.checkpoints += 1
            self.reporter.saved(
                CheckpointRecord(
                    step=written.step, time=self.clock.wall(), digest=written.digest, path=str(written.path)
                )
            )

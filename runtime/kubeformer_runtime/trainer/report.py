"""What a rank says of itself: one Progress a second to its launcher, and lines for the log on rank 0."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from kubeformer.contract.progress import Artifact, CheckpointRecord, Epoch, Failure, Phase, Progress
from kubeformer_runtime.heartbeat import Heartbeat
from kubeformer_runtime.trainer.state import State

EVERY_SECONDS = 1.0
LAST_EPOCHS = 20


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time comes from; tests bring their own."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


class Reporter:
    """Holds the last Progress and sends it on: at once where the phase changes, else once a second."""

    def __init__(self, heartbeat: Heartbeat, clock: Clock, *, rank: int, attempt: int) -> None:
        self._heartbeat, self._clock = heartbeat, clock
        self._sent = float("-inf")
        self._steps, self._tokens, self._tokens_since = 0, 0, clock.monotonic()
        self.progress = Progress(phase="Preparing", rank=rank, attempt=attempt, start_time=clock.wall())

    def phase(self, phase: Phase) -> None:
        """Enters a phase."""
        self.update(phase=phase)

    def update(self, **fields: object) -> None:
        """Changes fields and sends."""
        self.progress = self.progress.model_copy(update=fields)
        self._send()

    def beat(self) -> None:
        """A sign of life; cheap enough for every step."""
        if self._clock.monotonic() - self._sent >= EVERY_SECONDS:
            self._send()

    def resolved(self, **facts: str | int | float) -> None:
        """Adds facts that depend on the data."""
        self.update(resolved=self.progress.resolved | facts)

    def stepped(
        self,
        state: State,
        epoch: int,
        tokens: int,
        loss: float,
        norm: float = 0.0,
        measures: Callable[[int, int], dict[str, float]] = lambda steps, tokens: {},
    ) -> None:
        """One optimiser step is done. `measures(steps, tokens)`, asked before sending: metrics of the steps since."""
        self._steps, self._tokens = self._steps + 1, self._tokens + tokens
        now = self._clock.monotonic()
        if now - self._sent < EVERY_SECONDS:
            return
        speed = self._tokens / max(1e-9, now - self._tokens_since)
        found = {"train/loss": loss, "train/gradientNorm": norm} | measures(self._steps, self._tokens)
        self._steps, self._tokens, self._tokens_since = 0, 0, now
        self.progress = self.progress.model_copy(
            update={
                "step": state.step,
                "epoch": epoch,
                "tokens_per_second": speed,
                "metrics": state.metrics | found,
            }
        )
        self._send()

    def settled(self, state: State, epoch: int) -> None:
        """An epoch or an evaluation is done, or a checkpoint was read."""
        self.update(
            step=state.step,
            epoch=epoch,
            metrics=dict(state.metrics),
            epochs=list(state.epochs),
            best_metrics=dict(state.best.metrics) if state.best else {},
            best_step=state.best.step if state.best else None,
        )

    def saved(self, record: CheckpointRecord) -> None:
        """A checkpoint is on storage."""
        self.update(checkpoint=record)

    def succeeded(self, artifact: Artifact, metrics: dict[str, float]) -> None:
        """The model is published."""
        self.update(phase="Succeeded", artifact=artifact, metrics=self.progress.metrics | metrics)

    def failed(self, reason: str, message: str) -> None:
        """The job cannot work; in words for its owner."""
        self.update(phase="Failed", failure=Failure(reason=reason, message=message))

    def log(self, line: str) -> None:
        """A line of the log, from rank 0 alone."""
        if self.progress.rank == 0:
            print(line, flush=True)

    def log_epoch(self, epoch: Epoch, total: int) -> None:
        """One line for a finished epoch."""
        validation = "" if epoch.validation_loss is None else f"  validation loss {epoch.validation_loss:.4f}"
        if epoch.validation_accuracy is not None:
            validation += f"  validation accuracy {epoch.validation_accuracy:.2%}"
        accuracy = "" if epoch.accuracy is None else f"  accuracy {epoch.accuracy:.2%}"
        self.log(
            f"epoch {epoch.epoch}/{total}  loss {epoch.loss:.4f}{accuracy}{validation}  "
            f"{epoch.seconds:.1f} s  {epoch.step_milliseconds:.1f} ms a step"
        )

    def _send(self) -> None:
        self._sent = self._clock.monotonic()
        self.progress = self.progress.model_copy(update={"heartbeat_time": self._clock.wall()})
        self._heartbeat.send(self.progress)

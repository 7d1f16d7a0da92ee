"""How a custom task says how it is doing, in three lines, in any image; Python's standard library alone.

    from kubeformer_runtime.integrations import report
    for step in range(1000):
        report(step, total_steps=1000, loss=loss)        # and checkpoint="/path" once one is on storage

With Hugging Face's Trainer: `Trainer(..., callbacks=[HuggingFaceCallback()])`; with Lightning: `LightningCallback()`.
What is reported is shown in the TrainingJob's status and at the launcher's /metrics. From the first report on,
silence of recovery.hangTimeoutSeconds counts as a hang. Outside of a job nothing is sent and nothing fails.
"""

import functools
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

__all__ = ["HuggingFaceCallback", "LightningCallback", "Reporter", "report"]


class Reporter:
    """One rank's line to the launcher. Every call sends all that was said so far, so that a lost one does no harm."""

    def __init__(self, socket_path: str | None, rank: int) -> None:
        self._path = socket_path
        self._said: dict[str, Any] = {"phase": "Training", "rank": rank, "metrics": {}}

    def report(
        self,
        step: int | None = None,
        *,
        total_steps: int | None = None,
        epoch: int | None = None,
        total_epochs: int | None = None,
        checkpoint: str | None = None,
        metrics: dict[str, float] | None = None,
        **more_metrics: float,
    ) -> bool:
        """Says how training is doing. True if the launcher took it; never raises for one that is gone.

        Metrics are numbers by name ("loss=0.3", or metrics={"validation/accuracy": 0.9}); a name without a slash
        becomes train/NAME. `checkpoint` is the path of one that is complete.
        """
        said = self._said
        numbers = {"step": step, "totalSteps": total_steps, "epoch": epoch, "totalEpochs": total_epochs}
        said.update({name: int(value) for name, value in numbers.items() if value is not None})
        for name, value in {**(metrics or {}), **more_metrics}.items():
            said["metrics"][name if "/" in name else f"train/{name}"] = _number(value)
        if checkpoint is not None:
            record = {"step": said.get("step", 0), "time": time.time(), "digest": "", "path": str(checkpoint)}
            said["checkpoint"] = record
        return self._send()

    def _send(self) -> bool:
        if not self._path:
            return False
        line = json.dumps({**self._said, "heartbeatTime": time.time()}).encode() + b"\n"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(0.5)
                connection.connect(self._path)
                connection.sendall(line)
        except OSError:
            return False
        return True


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinities: they travel as text, as the launcher expects."""
    number = float(value)
    if number != number:
        return "NaN"
    return number if abs(number) != float("inf") else "Infinity" if number > 0 else "-Infinity"


@functools.cache
def _reporter(socket_path: str | None, rank: int) -> Reporter:
    """One a launcher and rank, which remembers what was said."""
    return Reporter(socket_path, rank)


def report(step: int | None = None, **said: Any) -> bool:
    """See Reporter.report; the launcher and the rank are those of the environment."""
    return _reporter(os.environ.get("KUBEFORMER_SOCKET"), int(os.environ.get("RANK", "0"))).report(step, **said)


class _Silent:
    """Answers to every event that a framework may send; those that matter are methods of the subclasses."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("on_") or name in ("setup", "teardown"):
            return lambda *given, **named: None
        raise AttributeError(name)


class HuggingFaceCallback(_Silent):
    """For transformers.Trainer: its logs become metrics, its saves checkpoints."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Numbers of a log; eval_NAME becomes validation/NAME."""
        numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
        metrics = {
            f"validation/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": value
            for name, value in numbers.items()
        }
        report(state.global_step, total_steps=state.max_steps, epoch=int(state.epoch or 0), metrics=metrics)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A sign of life."""
        report(state.global_step, total_steps=state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The checkpoint that was just written."""
        report(state.global_step, checkpoint=os.path.join(args.output_dir, f"checkpoint-{state.global_step}"))


class LightningCallback(_Silent):
    """For lightning.Trainer: logged metrics at every batch's end and after validation."""

    state_key = "KubeformerLightningCallback"

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Step, epoch and what was logged."""
        self._tell(trainer)

    def on_validation_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """What validation logged."""
        self._tell(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Nothing has to be saved."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing was."""

    def _tell(self, trainer: Any) -> None:
        metrics = {
            f"validation/{name.removeprefix('val_')}" if name.startswith("val_") else name: float(value)
            for name, value in trainer.callback_metrics.items()
        }
        total = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
        report(trainer.global_step, total_steps=total, epoch=trainer.current_epoch, metrics=metrics)

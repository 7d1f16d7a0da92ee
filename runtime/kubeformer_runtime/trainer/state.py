"""The counters of a run: what a checkpoint holds beside tensors, and what early stopping and Best decide from."""

from pydantic import BaseModel, ConfigDict, Field

from kubeformer.contract.job import Training
from kubeformer.contract.progress import Epoch


class Fingerprint(BaseModel):
    """What a checkpoint may be continued with: training on under another one would be a different run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str  # digest of the prepared rows
    model: str  # digest of the configuration, and of the weights it began with
    batch_size: int
    seed: int
    total_steps: int


class Best(BaseModel):
    """The best evaluation so far."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    step: int
    value: float
    metrics: dict[str, float]


class State(BaseModel):
    """Everything that changes while training, apart from tensors. Mutable; the loop owns it."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    fingerprint: Fingerprint
    world_size: int
    step: int = 0  # optimiser steps taken
    settled_step: int = 0  # the last step whose evaluation and end of epoch, where due, are done
    finished: bool = False
    stopped: bool = False  # whether this was written because a stop was wished for
    failures: int = 0  # how often ranks were started again without such a wish
    seconds: float = 0.0  # of training, over all starts
    loss_scale: float = 65536.0  # of float16; see precision.py
    loss_scale_steps: int = 0
    epoch_loss: float = 0.0  # sums over the current epoch
    epoch_correct: float = 0.0
    epoch_weight: float = 0.0
    epoch_seconds: float = 0.0
    epoch_steps: int = 0
    best: Best | None = None
    evaluations_without_better: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    epochs: list[Epoch] = Field(default_factory=list)

    def judge(self, training: Training, metrics: dict[str, float]) -> bool:
        """Takes the metrics of an evaluation at the current step; True where it is the best so far.

        Also counts how many evaluations in a row brought no improvement of more than early stopping's minDelta.
        """
        value, before = metrics[training.objective_metric], self.best.value if self.best else None
        min_delta = training.early_stopping.min_delta if training.early_stopping else 0.0
        enough = is_better(training, value, before, min_delta)
        self.evaluations_without_better = 0 if enough else self.evaluations_without_better + 1
        if better := is_better(training, value, before):
            self.best = Best(step=self.step, value=value, metrics=dict(metrics))
        return better

    def out_of_patience(self, training: Training) -> bool:
        """Whether early stopping, where asked for, ends the run."""
        stopping = training.early_stopping
        return stopping is not None and self.evaluations_without_better >= stopping.patience


def is_better(training: Training, value: float, best: float | None, by: float = 0.0) -> bool:
    """Whether `value` beats `best` by more than `by`; NaN beats nothing, anything else beats None."""
    if value != value:
        return False
    if best is None:
        return True
    return value > best + by if training.objective_direction == "Maximize" else value < best - by

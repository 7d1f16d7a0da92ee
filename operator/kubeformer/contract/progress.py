"""Progress: what a worker says of itself at GET /progress, and at its end in the termination message.

Rank 0 composes it and sends it to its launcher over a Unix socket, one JSON object a line; the launcher of
every worker serves the last one it heard, so that a stopped rank still has someone to speak for it.
Metric values are floats; NaN and infinities are written as strings. Times are seconds since the epoch.
"""

from typing import Literal

from pydantic import Field

from kubeformer.contract.base import Document

Phase = Literal[
    "Starting",  # the launcher is up, the ranks have not reported yet
    "Preparing",  # reading and cleaning data, training a tokenizer
    "Training",
    "Evaluating",
    "Checkpointing",
    "Publishing",
    "Succeeded",
    "Stopped",  # voluntary: SIGTERM, with a checkpoint written
    "Failed",
]


class Epoch(Document):
    """One finished epoch."""

    epoch: int  # from 1
    loss: float
    accuracy: float | None = None  # on the training rows, as they were seen
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    seconds: float
    step_milliseconds: float


class CheckpointRecord(Document):
    """The last checkpoint that is safely on storage."""

    step: int
    time: float
    digest: str
    path: str


class Artifact(Document):
    """A published model."""

    uri: str
    digest: str
    step: int
    metrics: dict[str, float] = Field(default_factory=dict)


class Failure(Document):
    """Why a worker gave up, in words for the user: which field, what was found, what to do."""

    reason: str
    message: str


class Progress(Document):
    """The whole document; see the module's docstring."""

    phase: Phase = "Starting"
    attempt: int = 1
    rank: int = 0
    step: int = 0
    total_steps: int | None = None
    epoch: int = 0
    total_epochs: int | None = None
    metrics: dict[str, float] = Field(default_factory=dict)  # last values, e.g. train/loss, validation/accuracy
    best_metrics: dict[str, float] = Field(default_factory=dict)
    best_step: int | None = None
    tokens_per_second: float | None = None
    epochs: list[Epoch] = Field(default_factory=list)  # the last 20
    checkpoint: CheckpointRecord | None = None
    artifact: Artifact | None = None
    resolved: dict[str, str | int | float] = Field(default_factory=dict)  # e.g. parameters, vocabularySize, trainRows
    failure: Failure | None = None
    restarts: int = 0  # of the ranks inside this pod
    heartbeat_time: float | None = None  # when a rank last spoke
    start_time: float | None = None

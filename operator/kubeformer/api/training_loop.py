"""How a TrainingJob learns: optimizer, schedule, evaluation, precision; and what each task measures."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kubeformer.api.common import Whole
from kubeformer.api.rules import Model, Rule, at_most_one, empty
from kubeformer.api.training_input import Percent

_LOSS = ("validation/loss",)
MEASURES: Mapping[str, tuple[str, ...]] = {
    "textClassification": (*_LOSS, "validation/accuracy"),
    "languageModel": (*_LOSS, "validation/perplexity", "validation/accuracy"),
    "chat": (*_LOSS, "validation/perplexity", "validation/accuracy"),
    "preference": (*_LOSS, "validation/accuracy", "validation/margin"),
    "textToText": (*_LOSS, "validation/perplexity", "validation/accuracy", "validation/chrf", "validation/rouge-l"),
    "recommendation": (*_LOSS, "validation/accuracy", "validation/ndcg@10", "validation/hit-rate@10"),
}
"""What each task measures on the validation rows: what Best may mean. custom measures what it likes."""

Metric = Literal[
    "validation/loss",
    "validation/accuracy",
    "validation/perplexity",
    "validation/margin",
    "validation/chrf",
    "validation/rouge-l",
    "validation/ndcg@10",
    "validation/hit-rate@10",
]


class Optimizer(Model):
    """How gradients become steps."""

    type: Literal["AdamW", "SGD", "Muon"] = "AdamW"
    """AdamW adapts the step for each weight; SGD (momentum 0.9) does not; Muon makes the steps of matrices
    orthogonal and leaves the rest to AdamW."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Pull of the weights towards zero."""

    max_gradient_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Longer gradients are shortened to this."""


class Schedule(Model):
    """How the learning rate changes over training."""

    type: Literal["Cosine", "Linear", "Constant", "WarmupStableDecay"] = "Cosine"
    """Cosine and Linear fall towards zero at the end; Constant stays; WarmupStableDecay stays, then falls."""

    warmup_percent: Percent = 5
    """Share of all steps over which the rate rises from zero."""

    decay_percent: Percent = 20
    """Share of all steps, at the end, over which WarmupStableDecay falls to zero."""


class Objective(Model):
    """What Best means, for publishing and early stopping."""

    metric: Metric
    """The figure that counts, one that the task measures."""

    direction: Literal["Maximize", "Minimize"] | None = None
    """Which way is better; left out: Minimize for loss and perplexity, Maximize for the others."""


class EarlyStopping(Model):
    """Stop when the objective no longer improves."""

    patience: Annotated[int, Field(ge=1, le=1000), Whole] = 3
    """Evaluations in a row without improvement after which training stops."""

    min_delta: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """An improvement of less than this counts as none."""


class Evaluation(Model):
    """When the model is scored on the validation rows."""

    RULES: ClassVar[tuple[Rule, ...]] = (at_most_one("everyEpochs", "everySteps", where="spec.training.evaluation"),)

    every_epochs: Annotated[int, Field(ge=1, le=10_000), Whole] | None = None
    """Score after so many epochs; left out, with everySteps left out: 1."""

    every_steps: Annotated[int, Field(ge=1, le=100_000_000), Whole] | None = None
    """Score after so many optimiser steps instead."""

    early_stopping: EarlyStopping | None = None
    """Stop early; left out: never."""


class Training(Model):
    """The optimisation."""

    RULES: ClassVar[tuple[Rule, ...]] = (at_most_one("epochs", "steps", where="spec.training"),)

    epochs: Annotated[int, Field(ge=1, le=100_000), Whole] | None = None
    """Passes over the training rows; left out, with steps left out: 3."""

    steps: Annotated[int, Field(ge=1, le=100_000_000), Whole] | None = None
    """Optimiser steps instead of epochs."""

    batch_size: Annotated[int, Field(ge=1, le=1_000_000), Whole] = 32
    """Rows (packed sequences, for languageModel) an optimiser step, over all workers together, however many."""

    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Step size at its highest, such as 3e-4; left out: by task, size, LoRA and optimizer."""

    optimizer: Optimizer = Optimizer()
    """How gradients become steps."""

    schedule: Schedule = Schedule()
    """How the learning rate changes."""

    objective: Objective | None = None
    """What Best means; left out: accuracy for textClassification, chrf for textToText, ndcg@10 for recommendation and
    loss for the other tasks, on the validation rows."""

    evaluation: Evaluation = empty(Evaluation)
    """When to score."""

    precision: Literal["Auto", "Float32", "BFloat16", "Float16"] = "Auto"
    """Arithmetic of the forward and backward pass. Auto: what the hardware does well."""

    activation_checkpointing: Literal["Auto", "None", "Full"] = "Auto"
    """Full: activations are computed again in the backward pass, which costs a third of the speed and saves most of
    their memory. Auto: where memory would not do without."""

    seed: Annotated[int, Field(ge=0, le=2**31 - 1), Whole] = 0
    """Seed of initial weights, split and order of rows; the same seed gives the same split."""

"""TrainingJob (short name tj): raw rows to a trained, checkpointed, published model.

The three-line spec `{task: {textClassification: {}}, data: {uri: "pvc://mail/spam.jsonl"}}` is complete: a small model,
one worker, three epochs. What is left out and has no default follows from task, data and model; what was chosen
stands in status.resolved.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field
from pydantic.alias_generators import to_snake

from kubeformer.api.common import (
    NAME_RULE,
    ObjectMeta,
    Pod,
    Resources,
    Storage,
    Whole,
)
from kubeformer.api.rules import Model, Rule, Transition, at_most_one, empty
from kubeformer.api.training_input import Architecture, Data, ModelSource, Percent, Task
from kubeformer.api.training_status import TrainingJobStatus

__all__ = ["Architecture", "TrainingJob", "TrainingJobSpec"]


class Optimizer(Model):
    """How gradients become steps."""

    type: Literal["AdamW", "SGD"] = "AdamW"
    """AdamW adapts the step for each weight; SGD (momentum 0.9) does not."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Pull of the weights towards zero."""

    max_gradient_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Longer gradients are shortened to this."""


class Schedule(Model):
    """How the learning rate changes over training."""

    type: Literal["Cosine", "Linear", "Constant"] = "Cosine"
    """Cosine and Linear fall towards zero at the end; Constant stays."""

    warmup_percent: Percent = 5
    """Share of all steps over which the rate rises from zero."""


class Objective(Model):
    """What Best means, for publishing and early stopping."""

    metric: Literal["validation/accuracy", "validation/loss"]
    """The figure that counts; accuracy exists for textClassification alone."""

    direction: Literal["Maximize", "Minimize"] | None = None
    """Which way is better; left out: Maximize for accuracy, Minimize for loss."""


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
    """Step size at its highest, such as 3e-4; left out: by task, model and optimizer."""

    optimizer: Optimizer = Optimizer()
    """How gradients become steps."""

    schedule: Schedule = Schedule()
    """How the learning rate changes."""

    objective: Objective | None = None
    """What Best means; left out: validation/accuracy for textClassification, validation/loss for languageModel."""

    evaluation: Evaluation = empty(Evaluation)
    """When to score."""

    precision: Literal["Auto", "Float32", "BFloat16"] = "Auto"
    """Arithmetic of the forward and backward pass. Auto: BFloat16 on GPUs that have it, else Float32."""

    seed: Annotated[int, Field(ge=0, le=2**31 - 1), Whole] = 0
    """Seed of initial weights, split and order of rows; the same seed gives the same split."""


class Workers(Model):
    """The pods that train together."""

    replicas: Annotated[int, Field(ge=1, le=1024), Whole] = 1
    """Number of pods."""

    processes_per_worker: Annotated[int, Field(ge=1, le=64), Whole] = 1
    """Training processes in each pod: one a GPU, or one on CPU."""

    resources: Resources = empty(Resources)
    """What each pod may use, and what is set aside for it."""


class Checkpoint(Model):
    """How training state is saved, to go on from after a fault or suspension."""

    interval_seconds: Annotated[int, Field(ge=1, le=86400), Whole] = 300
    """Time between checkpoints. A change holds from the workers' next start."""

    keep: Annotated[int, Field(ge=1, le=100), Whole] = 3
    """Checkpoints kept, the best one beside them. A change holds from the workers' next start."""

    storage: Storage | None = None
    """Where to; left out: below the installation's storage.uri. Deleted with the job."""


class Recovery(Model):
    """What is done about faults. Voluntary stops (suspension, eviction) never count."""

    max_restarts: Annotated[int, Field(ge=0, le=1000), Whole] = 10
    """Faults after which the job fails."""

    hang_timeout_seconds: Annotated[int, Field(ge=5, le=86400), Whole] = 600
    """Time without a sign of life from training after which its processes are started again."""


class Output(Model):
    """The published model."""

    storage: Storage | None = None
    """Directory that becomes the model, in Hugging Face layout; left out: models/NAME below the installation's
    storage.uri. It stays when the job is deleted."""

    publish: Literal["Best", "Last"] = "Best"
    """Best: the weights that scored best by the objective; Last: those of the last step."""


class TrainingJobSpec(Model):
    """What to train, on what, and how."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.data.tokenizer) || !has(self.model) || has(self.model.architecture)",
            "data.tokenizer.train goes with model.architecture alone: weights given by model.uri or "
            "model.trainingJobRef bring their own tokenizer; leave data.tokenizer out",
            lambda s: s.data.tokenizer is None or s.model is None or s.model.architecture is not None,
        ),
        Rule(
            "!has(self.task.languageModel) || !has(self.training.objective) || "
            "self.training.objective.metric != 'validation/accuracy'",
            "training.objective.metric validation/accuracy goes with task.textClassification alone; "
            "use validation/loss for languageModel",
            lambda s: (
                s.task.language_model is None
                or s.training.objective is None
                or s.training.objective.metric != "validation/accuracy"
            ),
        ),
    )

    task: Task
    """What is learnt, for example textClassification: {}."""

    model: ModelSource | None = None
    """What is trained; left out: a small model that suits the task."""

    data: Data
    """Where rows come from."""

    training: Training = Training()
    """The optimisation."""

    workers: Workers = Workers()
    """The pods that train together."""

    checkpoint: Checkpoint = Checkpoint()
    """How training state is saved."""

    recovery: Recovery = Recovery()
    """What is done about faults."""

    output: Output = Output()
    """The published model."""

    suspend: bool = False
    """Save a checkpoint and stop the workers; false again goes on from there."""

    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000), Whole] | None = None
    """The job fails when it has been active this long; waiting for others and suspension do not count."""

    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000), Whole] | None = None
    """The job is deleted this long after it finished (its model stays); left out: never."""

    pod: Pod = empty(Pod)
    """What may be said about the worker pods."""


def _frozen(*steps: str) -> Transition:
    """Once training has started, the member that `steps` (JSON names below spec) lead to stays what it was."""
    path = ".".join(steps)
    names = [to_snake(step) for step in steps]

    def value(job: "TrainingJob") -> Any:
        found: Any = job.spec
        for name in names:
            found = getattr(found, name)
        return found

    # Not CEL's optional selection (self.spec.?model == oldSelf.spec.?model): its cost is estimated as unbounded.
    new, old = f"self.spec.{path}", f"oldSelf.spec.{path}"
    same = f"has({new}) ? has({old}) && {new} == {old} : !has({old})"
    return Transition(
        f"!has(oldSelf.status) || !has(oldSelf.status.startTime) || ({same})",
        f"spec.{path} cannot change once training has started; make a new TrainingJob, "
        "which can go on from this one's model by model.trainingJobRef",
        lambda old, new: not old.status.start_time or value(old) == value(new),
    )


class TrainingJob(Model):
    """Raw rows to a trained, checkpointed, published model."""

    RULES: ClassVar[tuple[Rule, ...]] = (NAME_RULE,)

    TRANSITIONS: ClassVar[tuple[Transition, ...]] = (
        _frozen("task"),
        _frozen("model"),
        _frozen("data"),
        _frozen("training"),
        _frozen("workers"),
        _frozen("checkpoint", "storage"),
        _frozen("output"),
        _frozen("pod"),
    )
    """Until status.startTime everything may be edited, so that a job refused for its data is mended in place."""

    api_version: Literal["kubeformer.dev/v1alpha1"] = "kubeformer.dev/v1alpha1"
    """Version of the API."""

    kind: Literal["TrainingJob"] = "TrainingJob"
    """Kind of the resource."""

    metadata: ObjectMeta
    """Name, namespace, labels and so on."""

    spec: TrainingJobSpec
    """What to train, on what, and how."""

    status: TrainingJobStatus = empty(TrainingJobStatus)
    """What the operator says about it."""

    def refused(self, before: Self) -> list[str]:
        """The sentences that the API server answers to a change from `before` to this; empty: the change is fine."""
        return [t.message for t in self.TRANSITIONS if not t.holds(before, self)]

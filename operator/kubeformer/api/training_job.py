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
    LocalObjectRef,
    ObjectMeta,
    Pod,
    Resources,
    Storage,
    Text,
    TrainingJobRef,
    Whole,
)
from kubeformer.api.rules import (
    Model,
    ResourceName,
    Rule,
    Transition,
    empty,
    exactly_one,
    keyed_by,
    matching,
)
from kubeformer.api.training_input import Architecture, Data, ModelSource
from kubeformer.api.training_loop import MEASURES, Training
from kubeformer.api.training_status import TrainingJobStatus
from kubeformer.api.training_task import Task
from kubeformer.api.uri import StorageUri

__all__ = ["Architecture", "TrainingJob", "TrainingJobSpec"]


class Workers(Model):
    """The pods that train together."""

    replicas: Annotated[int, Field(ge=1, le=1024), Whole] = 1
    """Number of pods."""

    processes_per_worker: Annotated[int, Field(ge=1, le=64), Whole] = 1
    """Training processes in each pod: one a GPU, or one on CPU."""

    resources: Resources = empty(Resources)
    """What each pod may use, and what is set aside for it."""


class ResumeFrom(Model):
    """Another job's training state: exactly one of the members."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("uri", "trainingJobRef", where="spec.checkpoint.resumeFrom", example="trainingJobRef: {name: a}"),
    )

    uri: StorageUri | None = None
    """A checkpoint, or the directory of several, of which the newest whole one counts, as in pvc://CLAIM/PATH."""

    training_job_ref: TrainingJobRef | None = None
    """A TrainingJob, whose last checkpoint counts."""


class Checkpoint(Model):
    """How training state is saved, to go on from after a fault or suspension."""

    interval_seconds: Annotated[int, Field(ge=1, le=86400), Whole] | None = None
    """Time between checkpoints; left out: from what one costs and how often workers fail. A change holds from the
    workers' next start."""

    keep: Annotated[int, Field(ge=1, le=100), Whole] = 3
    """Checkpoints kept, the best one beside them. A change holds from the workers' next start."""

    storage: Storage | None = None
    """Where to; left out: below the installation's storage.uri. Deleted with the job."""

    resume_from: ResumeFrom | None = None
    """Training state of another job to go on from: weights, optimiser, place in the data and all."""


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


class TensorBoard(Model):
    """Event files, below the directory of the checkpoints."""


class MLflow(Model):
    """A run on an MLflow server."""

    uri: Annotated[
        str,
        Field(min_length=1, max_length=1024),
        matching(r"^https?://[^/@?# ]+(/[^?# ]*)?$", "must be http(s)://HOST/PATH, without user name or query"),
    ]
    """Address of the tracking server."""

    experiment: Text = "kubeformer"
    """Experiment that the run belongs to; made where it is missing."""


class WandB(Model):
    """A run at Weights & Biases."""

    project: Text = "kubeformer"
    """Project that the run belongs to."""


class Tracker(Model):
    """Somebody who is told the figures of training: exactly one of tensorBoard, mlflow and wandb."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("tensorBoard", "mlflow", "wandb", where="spec.tracking", example="tensorBoard: {}"),
    )

    name: ResourceName
    """Name, told apart in logs."""

    tensor_board: TensorBoard | None = None
    """Write event files for TensorBoard; {} is enough."""

    mlflow: MLflow | None = None
    """Tell an MLflow server; the image has to hold the package mlflow."""

    wandb: WandB | None = None
    """Tell Weights & Biases; the image has to hold the package wandb."""

    secret_ref: LocalObjectRef | None = None
    """Secret with MLFLOW_TRACKING_TOKEN (or _USERNAME and _PASSWORD), or WANDB_API_KEY. Only the workers read it."""


class TrainingJobSpec(Model):
    """What to train, on what, and how."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.data) || has(self.task.custom)",
            "data is required: name the rows, as in data: {uri: pvc://CLAIM/PATH}; task.custom alone does without",
            lambda s: s.data is not None or s.task.custom is not None,
        ),
        Rule(
            "!has(self.data) || !has(self.data.tokenizer) || !has(self.model) || has(self.model.architecture)",
            "data.tokenizer goes with model.architecture alone: weights given by model.uri or "
            "model.trainingJobRef bring their own tokenizer; leave data.tokenizer out",
            lambda s: s.data is None or s.data.tokenizer is None or s.model is None or s.model.architecture is not None,
        ),
        Rule(
            "!(has(self.task.chat) || has(self.task.preference)) || (has(self.model) && !has(self.model.architecture))",
            "task.chat and task.preference go on from a model that can write already: name one by model.uri or "
            "model.trainingJobRef",
            lambda s: (
                (s.task.chat is None and s.task.preference is None)
                or (s.model is not None and s.model.architecture is None)
            ),
        ),
        Rule(
            "!has(self.training.objective) || "
            + " || ".join(
                f"(has(self.task.{task}) && self.training.objective.metric in {list(metrics)})"
                for task, metrics in MEASURES.items()
            ),
            "training.objective.metric is none that this task measures; docs/training.md lists them, and "
            "validation/loss is one of every task but custom, which has none",
            lambda s: s.training.objective is None or s.training.objective.metric in MEASURES.get(s.task.kind, ()),
        ),
    )

    task: Task
    """What is learnt, for example textClassification: {}."""

    model: ModelSource | None = None
    """What is trained; left out: a small model that suits the task."""

    data: Data | None = None
    """Where rows come from; task.custom alone does without."""

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

    tracking: Annotated[list[Tracker], Field(max_length=4), *keyed_by("name")] = empty(list)
    """Who else is told the figures."""

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
        _frozen("checkpoint", "resumeFrom"),
        _frozen("tracking"),
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

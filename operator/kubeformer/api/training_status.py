"""The status of a TrainingJob: what the operator says about it. Less than 16 KB whatever happens, by its bounds."""

from typing import Annotated, Literal

from pydantic import Field

from kubeformer.api.common import Count, Digest, LongCount, Number, Text, Time
from kubeformer.api.conditions import Condition
from kubeformer.api.rules import Lenient, empty, keyed_by

Conditions = Annotated[list[Condition], Field(max_length=16), *keyed_by("type")]
StatusUri = Annotated[str, Field(max_length=1100)]
ImageName = Annotated[str, Field(max_length=512)]


class Figure(Lenient):
    """A named figure."""

    name: Text
    """Name, such as validation/accuracy."""

    value: Number
    """Its last value."""

    best: Number | None = None
    """Its best value so far."""

    best_step: LongCount | None = None
    """The step of the best value."""


class NamedText(Lenient):
    """A named fact."""

    name: Text
    """Name of the fact."""

    value: Annotated[str, Field(max_length=256)]
    """The fact."""


class ResolvedJob(Lenient):
    """What was left open in the spec and chosen when the job was first planned; it stays so."""

    image: ImageName | None = None
    """Image of the workers."""

    epochs: Count | None = None
    """Passes over the training rows."""

    steps: Count | None = None
    """Optimiser steps, where the spec counts in steps."""

    learning_rate: Number | None = None
    """Step size at its highest."""

    objective_metric: Text | None = None
    """What Best means."""

    objective_direction: Literal["Maximize", "Minimize"] | None = None
    """Which way is better."""

    base_uri: StatusUri | None = None
    """Weights that training goes on from."""

    base_digest: Digest | None = None
    """Digest of those weights, where a TrainingJob published them."""

    resume_uri: StatusUri | None = None
    """Training state of another job that training goes on from."""

    checkpoint_uri: StatusUri | None = None
    """Where training state is saved."""

    output_uri: StatusUri | None = None
    """Where the model is published."""

    settings_hash: Text | None = None
    """Hash of the settings that the workers were given."""

    facts: Annotated[list[NamedText], Field(max_length=32), *keyed_by("name")] = empty(list)
    """What the workers found: parameters, vocabularySize, trainRows and so on."""


class JobProgress(Lenient):
    """How far training is, as of updateTime."""

    summary: Text | None = None
    """Step and all steps, such as 1200/5000."""

    step: LongCount | None = None
    """Optimiser steps taken."""

    total_steps: LongCount | None = None
    """Optimiser steps to take."""

    epoch: Count | None = None
    """Epoch under way, from 1."""

    total_epochs: Count | None = None
    """Epochs to go through."""

    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Share of steps taken."""

    phase: Text | None = None
    """What the workers do: Preparing, Training, Evaluating and so on."""

    estimated_completion_time: Time | None = None
    """When training is likely to end."""

    eta: Text | None = None
    """Time left in words, such as 12m."""

    tokens_per_second: Number | None = None
    """Tokens trained on a second, over all workers."""

    update_time: Time | None = None
    """When the workers said so."""


class EpochRecord(Lenient):
    """One finished epoch."""

    epoch: Count
    """Number, from 1."""

    loss: Number
    """Mean training loss."""

    accuracy: Number | None = None
    """Accuracy on the training rows, as they were seen."""

    validation_loss: Number | None = None
    """Loss on the validation rows."""

    validation_accuracy: Number | None = None
    """Accuracy on the validation rows."""

    seconds: Number
    """How long the epoch took."""

    step_milliseconds: Number | None = None
    """Mean time of a step."""


class CheckpointStatus(Lenient):
    """The last checkpoint that is safely on storage."""

    step: LongCount
    """Step at which it was taken."""

    time: Time
    """When it was complete."""

    digest: Digest | None = None
    """Digest of its content."""

    uri: StatusUri | None = None
    """Where it is."""


class WorkersStatus(Lenient):
    """The pods."""

    desired: Count = 0
    """Pods that should run."""

    ready: Count = 0
    """Pods that do run."""

    restarts: Count = 0
    """Starts after the first, by faults."""

    summary: Text | None = None
    """Ready of desired, such as 2/2."""


class Attempt(Lenient):
    """A time in which workers ran."""

    number: Count
    """Number, from 1."""

    reason: Text | None = None
    """Why it ended."""

    start_time: Time | None = None
    """When it began."""

    end_time: Time | None = None
    """When it ended."""

    from_step: LongCount | None = None
    """Step from which it went on."""

    to_step: LongCount | None = None
    """Step that it reached."""


class ArtifactStatus(Lenient):
    """A published model."""

    uri: StatusUri
    """Where it is."""

    digest: Digest
    """Digest of weights, configuration and tokenizer: the model's name everywhere."""

    step: LongCount
    """Step of its weights."""

    metrics: Annotated[list[Figure], Field(max_length=16), *keyed_by("name")] = empty(list)
    """Its figures, those on test rows included."""


class Provenance(Lenient):
    """What the model was made from."""

    image: ImageName | None = None
    """Image of the workers."""

    data: StatusUri | None = None
    """URI of the rows."""

    data_digest: Digest | None = None
    """Digest of the rows as they were read."""

    base: StatusUri | None = None
    """URI of the weights that training went on from."""

    base_digest: Digest | None = None
    """Digest of those weights."""

    seed: Count | None = None
    """Seed of the run."""

    world_size: Count | None = None
    """Training processes over all workers."""


class TrainingJobStatus(Lenient):
    """What the operator says about a TrainingJob."""

    conditions: Conditions = empty(list)
    """How the job is doing; Succeeded is the summary."""

    observed_generation: LongCount | None = None
    """The generation of the spec that this status is about."""

    start_time: Time | None = None
    """When workers were first made; from then on most of the spec is fixed."""

    completion_time: Time | None = None
    """When the job finished, either way."""

    selector: Text | None = None
    """Label selector of the worker pods."""

    resolved: ResolvedJob | None = None
    """What was left open in the spec and chosen."""

    progress: JobProgress | None = None
    """How far training is."""

    metrics: Annotated[list[Figure], Field(max_length=32), *keyed_by("name")] = empty(list)
    """The figures, newest values."""

    epochs: Annotated[list[EpochRecord], Field(max_length=20), *keyed_by("epoch")] = empty(list)
    """The last 20 epochs."""

    checkpoint: CheckpointStatus | None = None
    """The last checkpoint."""

    workers: WorkersStatus | None = None
    """The pods."""

    attempts: Annotated[list[Attempt], Field(max_length=10), *keyed_by("number")] = empty(list)
    """The last 10 times in which workers ran."""

    artifacts: Annotated[list[ArtifactStatus], Field(max_length=5), *keyed_by("digest")] = empty(list)
    """The last 5 published models, the newest last."""

    provenance: Provenance | None = None
    """What the model was made from."""

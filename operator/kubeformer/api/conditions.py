"""Conditions and reasons: the words in which the operator says how a resource is doing.

Each has its meaning beside it; the tables of docs/reference/api.md are made from here. A condition is there, Unknown,
from the operator's first visit. One summarises: `Succeeded` for a TrainingJob, `Ready` for a ModelDeployment.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from kubeformer.api.common import LongCount, Time
from kubeformer.api.rules import Lenient

MAX_MESSAGE = 1024

Status = Literal["True", "False", "Unknown"]


class Described(StrEnum):
    """A word with a meaning of one line."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class JobCondition(Described):
    """Types of a TrainingJob's conditions."""

    SUCCEEDED = "Succeeded", "The summary: True when the model is published, False when the job has failed for good."
    VALID = "Valid", "What the job refers to exists and fits together; False says what to mend."
    ADMITTED = "Admitted", "Workers may run; False names what holds them back: a model, room on a node, suspension."
    RUNNING = "Running", "All workers are up."
    PROGRESSING = "Progressing", "Training moves on; False when it waits for something or a worker hangs."
    CHECKPOINTED = "Checkpointed", "A checkpoint is safely on storage; training goes on from there after a fault."
    SUSPENDED = "Suspended", "spec.suspend holds the job; no worker runs."
    FINISHED = "Finished", "Nothing more will happen: the job has succeeded or failed for good."


class DeploymentCondition(Described):
    """Types of a ModelDeployment's conditions."""

    READY = "Ready", "The summary: True when the model answers with the revision that the spec asks for."
    VALID = "Valid", "What the deployment refers to exists and fits together; False says what to mend."
    MODEL_READY = "ModelReady", "The model to serve is known and published."
    AVAILABLE = "Available", "At least one replica answers."
    PROGRESSING = "Progressing", "A roll-out is under way; False when it is done or stuck."


class JobReason(Described):
    """Reasons of a TrainingJob's conditions."""

    PENDING = "Pending", "The operator has not yet got to this."
    ACCEPTED = "Accepted", "Everything the job refers to was found."
    # What has to be mended by the user.
    DATA_NOT_FOUND = "DataNotFound", "No file is at data.uri, validation.uri or test.uri."
    DATA_INVALID = "DataInvalid", "The data cannot be read, or too many rows are bad."
    FIELD_NOT_FOUND = "FieldNotFound", "The rows have no field of the name that the task gives."
    MODEL_NOT_FOUND = "ModelNotFound", "There is no model, or no TrainingJob, where spec.model points."
    MODEL_INVALID = "ModelInvalid", "The model cannot be used for this task."
    MODEL_FAILED = "ModelFailed", "The TrainingJob that spec.model names has failed and published nothing."
    CHECKPOINT_NOT_FOUND = "CheckpointNotFound", "There is no training state where checkpoint.resumeFrom points."
    CLAIM_NOT_FOUND = "ClaimNotFound", "A PersistentVolumeClaim that a URI names does not exist."
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound", "A ConfigMap that a URI names, or its key, does not exist."
    STORAGE_UNSUITABLE = "StorageUnsuitable", "The claim cannot be mounted by all workers."
    STORAGE_FULL = "StorageFull", "There is no space left for checkpoints; the last good one is untouched."
    STORAGE_LOST = "StorageLost", "Checkpoints cannot be written; workers start again and try once more."
    SETTINGS_INVALID = "SettingsInvalid", "The settings do not fit together, for example width and heads."
    NAME_TAKEN = "NameTaken", "An object of the name that is needed exists and belongs to someone else."
    REJECTED = "Rejected", "The API server refuses what the operator wants to make; the message says why."
    # What the job waits for.
    WAITING_FOR_MODEL = "WaitingForModel", "The TrainingJob that spec.model names has not published its model yet."
    WAITING_FOR_STORAGE = "WaitingForStorage", "A claim is not bound yet."
    WAITING_FOR_WORKERS = "WaitingForWorkers", "Not all workers are up yet."
    INSUFFICIENT_CAPACITY = "InsufficientCapacity", "No node is big enough for a worker, even when it is empty."
    UNSCHEDULABLE = "Unschedulable", "No node has room for a worker, or none that it may run on."
    IMAGE_PULL_FAILED = "ImagePullFailed", "The image of the workers cannot be pulled."
    CONTAINER_FAILED = "ContainerFailed", "The container of a worker cannot be started."
    SUSPENDED = "Suspended", "spec.suspend is true."
    SUSPENDING = "Suspending", "Workers save a checkpoint and stop, because spec.suspend is true."
    NOT_SUSPENDED = "NotSuspended", "spec.suspend is false."
    # What it does.
    STARTING = "Starting", "Workers are up and find each other."
    PREPARING = "Preparing", "Data is read, cleaned and tokenised."
    TRAINING = "Training", "Steps are taken."
    EVALUATING = "Evaluating", "The model is scored on the validation data."
    CHECKPOINTING = "Checkpointing", "Training state is being saved."
    PUBLISHING = "Publishing", "The model is being written to output.storage."
    RESTARTING = "Restarting", "Workers start again after a fault, from the last checkpoint."
    HANGING = "Hanging", "No step was taken for recovery.hangTimeoutSeconds."
    SILENT = "Silent", "A worker does not answer; nothing is known of its progress."
    CHECKPOINT_SAVED = "CheckpointSaved", "status.checkpoint says which."
    NO_CHECKPOINT = "NoCheckpoint", "None was saved yet."
    # How it ended.
    NOT_FINISHED = "NotFinished", "The job goes on."
    COMPLETED = "Completed", "Training is done and the model is published."
    FAILED = "Failed", "The job has failed; the message says why."
    TRAINING_DIVERGED = "TrainingDiverged", "The loss is not a number; a lower learningRate often helps."
    MAX_RESTARTS_EXCEEDED = "MaxRestartsExceeded", "More faults than recovery.maxRestarts."
    DEADLINE_EXCEEDED = "DeadlineExceeded", "activeDeadlineSeconds have passed."


class DeploymentReason(Described):
    """Reasons of a ModelDeployment's conditions."""

    PENDING = "Pending", "The operator has not yet got to this."
    ACCEPTED = "Accepted", "Everything the deployment refers to was found."
    # What has to be mended by the user.
    MODEL_NOT_FOUND = "ModelNotFound", "There is no model, or no TrainingJob, where spec.model points."
    MODEL_INVALID = "ModelInvalid", "The engine cannot serve the model; the message says why."
    MODEL_FAILED = "ModelFailed", "The TrainingJob that spec.model names has failed and published nothing."
    CLAIM_NOT_FOUND = "ClaimNotFound", "The PersistentVolumeClaim that model.uri names does not exist."
    SETTINGS_INVALID = "SettingsInvalid", "The settings do not fit together."
    NAME_TAKEN = "NameTaken", "A served name belongs to an older deployment; NAMESPACE/NAME works all the same."
    REJECTED = "Rejected", "The API server refuses what the operator wants to make; the message says why."
    # What it waits for.
    WAITING_FOR_MODEL = "WaitingForModel", "The TrainingJob that spec.model names has not published its model yet."
    MODEL_FOUND = "ModelFound", "The model is known; status.lineage says where it is from."
    INSUFFICIENT_CAPACITY = "InsufficientCapacity", "No node is big enough for a replica, even when it is empty."
    UNSCHEDULABLE = "Unschedulable", "No node has room for a replica, or none that it may run on."
    IMAGE_PULL_FAILED = "ImagePullFailed", "The image of the servers cannot be pulled."
    CONTAINER_FAILED = "ContainerFailed", "A server cannot be started or stops again and again."
    LOADING = "Loading", "Replicas load the model."
    ROLLING_OUT = "RollingOut", "Replicas of a new revision take the place of the old ones."
    ROLLOUT_STUCK = "RolloutStuck", "The new revision does not get ready; the old one serves on."
    # How it stands.
    SERVING = "Serving", "The replicas that the spec asks for answer."
    UNDER_STRENGTH = "UnderStrength", "Some replicas answer, fewer than the spec asks for."
    NO_REPLICA_READY = "NoReplicaReady", "No replica answers."
    SCALED_TO_ZERO = "ScaledToZero", "spec.replicas is 0."
    ROLLED_OUT = "RolledOut", "All replicas run the revision that the spec asks for."


class Condition(Lenient):
    """One thing that can be said about a resource, as in metav1.Condition."""

    type: Annotated[str, Field(max_length=64)]
    """What is said; see the table of conditions."""

    status: Status
    """True, False or Unknown."""

    observed_generation: LongCount = 0
    """The generation of the spec that this is about."""

    last_transition_time: Time
    """When status last changed."""

    reason: Annotated[str, Field(max_length=128)]
    """Why, in one word; see the table of reasons."""

    message: Annotated[str, Field(max_length=MAX_MESSAGE)] = ""
    """Why, in a sentence, with the next step to take."""


def updated(
    before: Iterable[Mapping[str, Any]],
    type: str,
    status: Status,
    reason: str,
    message: str,
    generation: int,
    now: str,
) -> dict[str, Any]:
    """The condition of `type` as JSON; its time stays what it was in `before` unless `status` has changed.

    `now` is RFC 3339 text. A message beyond MAX_MESSAGE characters is cut, with an ellipsis.
    """
    old = next((c for c in before if c.get("type") == type), None)
    kept = old["lastTransitionTime"] if old is not None and old.get("status") == status else now
    return {
        "type": str(type),
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": kept,
        "reason": str(reason),
        "message": message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…",
    }


def find(conditions: Iterable[Mapping[str, Any]], type: str) -> Mapping[str, Any] | None:
    """The condition of `type` in JSON, or None."""
    return next((c for c in conditions if c.get("type") == type), None)

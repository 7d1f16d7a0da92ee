"""Builders of TrainingJobs for tests: `training_job(epochs=2)` is complete, everything else is a change to it."""

from typing import Any

from kubeformer import training
from kubeformer.api.training_job import TrainingJob
from kubeformer.contract.progress import Artifact, CheckpointRecord, Epoch, Progress
from kubeformer.kit.view import Key
from tests.unit.world import NAMESPACE, START, World, claim, condition, node

Object = dict[str, Any]
KEY = Key("TrainingJob", NAMESPACE, "spam")
JOB = Key("Job", NAMESPACE, "spam")


def training_job(name: str = "spam", **spec: Any) -> Object:
    """A TrainingJob on the claim `mail`; keywords are fields of the spec."""
    body: Object = {"task": {"textClassification": {}}, "data": {"uri": "pvc://mail/spam-*.jsonl"}}
    return {
        "apiVersion": "kubeformer.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {**body, **spec},
    }


def world(*more: Object, job: Object | None = None, **spec: Any) -> World:
    """A cluster with two nodes, the claim `mail`, the TrainingJob `spam`, and more."""
    return World(node("node1"), node("node2"), claim("mail"), *more, job or training_job(**spec))


def running(*more: Object, **spec: Any) -> tuple[World, list[str]]:
    """The same, settled, with workers that run; and the uids of their pods."""
    w = world(*more, **spec)
    w.settle(training.reconcile, KEY)
    pods = w.start_workers("spam")
    w.settle(training.reconcile, KEY)
    return w, pods


def at_step(step: int, total: int = 100, **fields: Any) -> Progress:
    """What a worker says in the middle of training."""
    said: Object = {
        "phase": "Training",
        "step": step,
        "total_steps": total,
        "epoch": 1,
        "total_epochs": 3,
        "metrics": {"train/loss": 0.5},
        "tokens_per_second": 1234.5,
        "start_time": START,
        "heartbeat_time": START + step,
        "resolved": {"parameters": 1000, "trainRows": 900},
    }
    return Progress(**{**said, **fields})


def epoch(number: int) -> Epoch:
    """One finished epoch."""
    return Epoch(
        epoch=number,
        loss=1 / number,
        validation_loss=1.1 / number,
        validation_accuracy=0.9,
        seconds=30.0,
        step_milliseconds=500.0,
    )


def saved(step: int) -> CheckpointRecord:
    """A checkpoint on storage."""
    path = f"/mnt/claims/kubeformer/checkpoints/spam-x/step-{step:08d}"
    return CheckpointRecord(step=step, time=START + step, digest=f"sha256:{step:064x}", path=path)


def finished(step: int = 100) -> Progress:
    """The last words of a worker that published its model."""
    artifact = Artifact(
        uri="pvc://kubeformer/models/spam",
        digest=f"sha256:{step:064x}",
        step=step,
        metrics={"validation/accuracy": 0.97},
    )
    return at_step(step, phase="Succeeded", artifact=artifact, checkpoint=saved(step))


def succeed(w: World, pods: list[str]) -> None:
    """All workers end well, and the Job with them."""
    for uid in pods:
        w.end_pod(uid, 0, finished())
    w.end_job("spam", "Complete")


def status(w: World) -> dict[str, Any]:
    """The job's status, which fits the schema."""
    found: dict[str, Any] = w.objects[KEY]["status"]
    TrainingJob.parse(w.objects[KEY])
    return found


def said(w: World, kind: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    found = condition(status(w), kind)
    return found["status"], found["reason"]

"""Builders of ModelDeployments for tests."""

from typing import Any

from kubeformer import serving
from kubeformer.kit.view import Key
from tests.unit.world import NAMESPACE, World, claim, node

Object = dict[str, Any]
KEY = Key("ModelDeployment", NAMESPACE, "spam")
DEPLOYMENT = Key("Deployment", NAMESPACE, "spam")
DIGEST = "sha256:" + "a" * 64


def model_deployment(name: str = "spam", **spec: Any) -> Object:
    """A ModelDeployment of the model at pvc://kubeformer/models/spam; keywords are fields of the spec."""
    return {
        "apiVersion": "kubeformer.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {"model": {"uri": "pvc://kubeformer/models/spam"}, **spec},
    }


def from_job(name: str = "spam", job: str = "spam", **spec: Any) -> Object:
    """A ModelDeployment of what a TrainingJob published."""
    return model_deployment(name, model={"trainingJobRef": {"name": job}}, **spec)


def trained(name: str = "spam", digest: str = DIGEST, **status: Any) -> Object:
    """A TrainingJob that has published its model."""
    return {
        "apiVersion": "kubeformer.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {"task": {"textClassification": {}}, "data": {"uri": "pvc://mail/spam.jsonl"}},
        "status": {
            "conditions": [{"type": "Succeeded", "status": "True", "reason": "Completed"}],
            "provenance": {"data": "pvc://mail/spam.jsonl"},
            "artifacts": [
                {
                    "uri": f"pvc://kubeformer/models/{name}",
                    "digest": digest,
                    "step": 100,
                    "metrics": [{"name": "validation/accuracy", "value": "0.97"}],
                }
            ],
            **status,
        },
    }


def world(*more: Object, deployment: Object | None = None, **spec: Any) -> World:
    """A cluster with two nodes, the storage claim, the ModelDeployment `spam`, and more."""
    return World(node("node1"), node("node2"), claim("kubeformer"), *more, deployment or model_deployment(**spec))


def serving_world(*more: Object, deployment: Object | None = None, **spec: Any) -> World:
    """The same, rolled out: all replicas answer."""
    w = world(*more, deployment=deployment, **spec)
    w.settle(serving.reconcile, KEY)
    w.roll_out("spam")
    w.settle(serving.reconcile, KEY)
    return w

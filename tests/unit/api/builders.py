"""Resources for the tests of this room, as users write them."""

from __future__ import annotations

from typing import Any

from kubeformer.api.model_deployment import ModelDeployment
from kubeformer.api.training_job import TrainingJob
from kubeformer.contract.names import API_VERSION


def job_body(**spec: Any) -> dict[str, Any]:
    """The shortest TrainingJob, with members of the spec replaced."""
    shortest = {"task": {"textClassification": {}}, "data": {"uri": "pvc://mail/spam.jsonl"}}
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainingJob",
        "metadata": {"name": "spam-filter"},
        "spec": shortest | spec,
    }


def job(**spec: Any) -> TrainingJob:
    """The same, parsed."""
    return TrainingJob.parse(job_body(**spec))


def deployment(**spec: Any) -> ModelDeployment:
    """The shortest ModelDeployment, with members of the spec replaced."""
    shortest = {"model": {"trainingJobRef": {"name": "spam-filter"}}}
    body = {"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": {"name": "x"}, "spec": shortest | spec}
    return ModelDeployment.parse(body)

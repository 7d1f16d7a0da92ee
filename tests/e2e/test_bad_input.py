"""Bad input is refused, or becomes a condition, in a sentence that names the field and the way out.

The seven kinds that the foundation names. What needs pods to be found out starts together, so that the tests wait once.
"""

from __future__ import annotations

import pytest

from tests.cluster.kubectl import CommandFailed, Object
from tests.e2e.lab import Lab, condition, model_deployment, training_job

ONE_WORKER = {"replicas": 1, "resources": {"requests": {"cpu": "50m", "memory": "384Mi"}, "limits": {"cpu": "1"}}}


@pytest.fixture(scope="module", autouse=True)
def found_out_later(lab: Lab) -> None:
    """Resources that the API server has to let in, because what is wrong with them lies outside of them."""
    claim: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "mail"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    gpu = {"replicas": 1, "resources": {"limits": {"nvidia.com/gpu": 1}}}
    wrong_field = {"textClassification": {"labelField": "verdict", "maxLength": 16}}
    lab.apply(
        claim,
        training_job("no-claim", data={"uri": "pvc://nowhere/mails.jsonl"}, workers=ONE_WORKER),
        training_job("no-file", data={"uri": "pvc://mail/mails.jsonl"}, workers=ONE_WORKER),
        training_job("no-field", task=wrong_field, workers=ONE_WORKER),
        training_job("no-base", model={"trainingJobRef": {"name": "nobody"}}, data=ROWS, workers=ONE_WORKER),
        training_job("no-gpu", workers=gpu),
        model_deployment("no-model", model={"uri": "pvc://mail/models/nothing"}),
    )


ROWS = {"uri": "configmap://rows/rows.jsonl"}


def refusal(lab: Lab, manifest: Object) -> str:
    with pytest.raises(CommandFailed) as refused:
        lab.kubectl.apply(manifest)
    return str(refused.value)


def test_an_unknown_field_is_refused_by_name(lab: Lab) -> None:
    said = refusal(lab, training_job("x", trainig={"epochs": 3}))
    assert 'unknown field "' in said  # "spec.trainig" in the API server's words, "trainig" in kubectl's own
    assert 'trainig"' in said


def test_a_negative_number_is_refused_with_the_least_that_would_do(lab: Lab) -> None:
    said = refusal(lab, training_job("x", training={"epochs": -1}))
    assert "spec.training.epochs" in said
    assert "-1" in said
    assert "greater than or equal to 1" in said


def test_two_variants_at_once_are_refused_with_an_example_of_one(lab: Lab) -> None:
    said = refusal(lab, training_job("x", task={"textClassification": {}, "languageModel": {}}))
    assert "give exactly one of textClassification, languageModel, chat, " in said
    assert "in spec.task, for example textClassification: {}" in said


def test_a_claim_that_is_not_there_becomes_a_condition(lab: Lab) -> None:
    job = lab.wait_for_condition("trainingjob", "no-claim", "Valid", "False", "ClaimNotFound")
    message = condition(job, "Valid")["message"]
    assert message.startswith("spec.data.uri is pvc://nowhere/mails.jsonl")
    assert "make it, or name another" in message


def test_a_data_file_that_is_not_there_becomes_a_condition(lab: Lab) -> None:
    job = lab.wait_for_condition("trainingjob", "no-file", "Succeeded", "False", "DataNotFound")
    message = condition(job, "Succeeded")["message"]
    assert "data.uri" in message
    assert "pvc://mail/mails.jsonl" in message
    assert condition(job, "Valid")["status"] == "False"


def test_a_label_field_that_is_not_there_becomes_a_condition(lab: Lab) -> None:
    job = lab.wait_for_condition("trainingjob", "no-field", "Succeeded", "False", "FieldNotFound")
    message = condition(job, "Succeeded")["message"]
    assert "verdict" in message
    assert "labelField" in message
    assert "label" in message.replace("labelField", "")  # and which fields there are


def test_a_model_that_does_not_exist_becomes_a_condition(lab: Lab) -> None:
    job = lab.wait_for_condition("trainingjob", "no-base", "Valid", "False", "ModelNotFound")
    assert "spec.model.trainingJobRef.name is nobody" in condition(job, "Valid")["message"]
    deployment = lab.wait_for_condition("modeldeployment", "no-model", "Ready", "False", "ModelNotFound")
    assert "pvc://mail/models/nothing" in condition(deployment, "Ready")["message"]
    assert condition(deployment, "ModelReady")["status"] == "False"


def test_a_gpu_that_nobody_has_becomes_a_condition_and_no_pod(lab: Lab) -> None:
    job = lab.wait_for_condition("trainingjob", "no-gpu", "Admitted", "False", "InsufficientCapacity")
    message = condition(job, "Admitted")["message"]
    assert message.startswith("spec.workers.resources.limits asks for nvidia.com/gpu: 1, and no node has any")
    assert "leave it out to run on CPU" in message
    assert lab.workers("no-gpu") == []


def test_a_job_that_was_refused_for_its_data_is_mended_in_place(lab: Lab) -> None:
    lab.patch("trainingjob", "no-claim", data=ROWS, suspend=True)
    lab.wait_for_condition("trainingjob", "no-claim", "Valid", "True", "Accepted")

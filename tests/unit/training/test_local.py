"""The settings of a TrainingJob without a cluster: the same as with one, or the same sentences."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kubeformer.training.local import read, result
from tests.unit.training.builders import training_job


def test_a_laptop_is_told_what_a_worker_would_be_told() -> None:
    body = training_job(task={"textToText": {"sourceField": "en"}}, training={"epochs": 2})
    settings = result([body])["settings"]
    assert settings["task"]["sourceField"] == "en"
    assert settings["training"]["epochs"] == 2
    assert settings["training"]["objectiveMetric"] == "validation/chrf"
    assert settings["output"]["location"]["path"] == "/mnt/claims/kubeformer/models/spam"


def test_models_and_states_of_earlier_jobs_are_found_by_name() -> None:
    ref = {"trainingJobRef": {"name": "base"}}
    body = training_job(task={"chat": {}}, model=ref | {"lora": {}}, checkpoint={"resumeFrom": ref})
    settings = result([body])["settings"]
    assert settings["model"]["base"]["path"] == "/mnt/claims/kubeformer/models/base"
    assert settings["checkpoint"]["resumeFrom"]["path"] == "/mnt/claims/kubeformer/checkpoints/base"


def test_config_maps_beside_the_job_come_along() -> None:
    code = {"kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"train.py": "print(1)"}}
    assert result([code, training_job()])["configMaps"] == {"code": {"train.py": "print(1)"}}


def test_yaml_and_json_are_read_alike() -> None:
    body: Any = training_job()
    assert read(json.dumps(body)) == [body]
    assert result(read("---\nkind: ConfigMap\nmetadata: {name: a}\n---\n" + json.dumps(body)))["configMaps"] == {
        "a": {}
    }


@pytest.mark.parametrize("documents", [[], [training_job(), training_job()], [3, None]])
def test_one_job_at_a_time(documents: list[Any]) -> None:
    with pytest.raises(ValueError, match="one is needed"):
        result(documents)

"""The resources: three lines are enough, and what is wrong is said in a sentence that names the field."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from kubeformer.api.common import significant
from kubeformer.api.model_deployment import ModelDeployment
from kubeformer.api.rules import sentences
from kubeformer.api.training_job import TrainingJob
from kubeformer.api.training_loop import MEASURES, Metric
from kubeformer.api.training_status import TrainingJobStatus
from kubeformer.contract.names import API_VERSION, RESERVED_ENV_NAMES, RESERVED_ENV_PREFIXES
from tests.unit.api.builders import deployment, job, job_body


def refusal(body: Any, model: type[TrainingJob] | type[ModelDeployment] = TrainingJob) -> list[str]:
    """The sentences with which a resource is refused."""
    with pytest.raises(ValidationError) as refused:
        model.parse(body)
    return sentences(refused.value)


def test_three_lines_are_a_training_job() -> None:
    spec = job().spec
    assert spec.task.text_classification is not None
    assert spec.task.text_classification.text_field == "text"
    assert spec.model is None
    assert (spec.training.epochs, spec.training.steps, spec.training.batch_size) == (None, None, 32)
    assert (spec.workers.replicas, spec.workers.processes_per_worker) == (1, 1)
    assert spec.data is not None
    assert spec.data.validation.percent == 10
    assert spec.training.seed == 0
    assert not spec.suspend


def test_three_lines_are_a_model_deployment() -> None:
    spec = deployment().spec
    assert spec.replicas == 1
    assert spec.model.served_names == []
    assert (spec.rollout.max_surge, spec.rollout.max_unavailable) == (1, 0)


def test_the_api_version_is_the_one_that_all_rooms_use() -> None:
    assert job().api_version == deployment().api_version == API_VERSION


def test_an_object_as_the_api_server_stores_it_is_parsed_with_metadata_and_status_of_later_versions() -> None:
    body = job_body()
    body["metadata"] |= {"uid": "u", "generation": 3, "managedFields": [{}], "resourceVersion": "7"}
    body["status"] = {"startTime": "2026-01-01T00:00:00Z", "somethingNew": {"a": 1}}
    parsed = TrainingJob.parse(body)
    assert (parsed.metadata.uid, parsed.metadata.generation) == ("u", 3)
    assert parsed.status.start_time == "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"trainning": {}}, "spec.trainning: there is no such field"),
        ({"training": {"batch_size": 3}}, "spec.training.batch_size: there is no such field"),
        ({"training": {"batchSize": -1}}, "spec.training.batchSize: -1: Input should be greater than or equal to 1"),
        ({"training": {"batchSize": "32"}}, "spec.training.batchSize: '32': Input should be a valid integer"),
        (
            {"task": {"textClassification": {}, "languageModel": {}}},
            "spec.task: give exactly one of textClassification, languageModel, chat, preference, textToText, "
            "recommendation and custom in spec.task, for example textClassification: {}",
        ),
        (
            {"task": {"textClassification": None}},
            "spec.task: give exactly one of textClassification, languageModel, chat, preference, textToText, "
            "recommendation and custom in spec.task, for example textClassification: {}",
        ),
        (
            {"training": {"epochs": 3, "steps": 100}},
            "spec.training: give at most one of epochs and steps in spec.training: they exclude each other",
        ),
        (
            {"model": {"architecture": {"width": 100, "heads": 3}}},
            "spec.model.architecture: width must be a multiple of heads, since each head takes an equal part of it",
        ),
        (
            {"data": {"uri": "pvc://a/b", "prepare": {"deduplicate": {"method": "Exact", "similarityPercent": 80}}}},
            "spec.data.prepare.deduplicate: similarityPercent needs method: Near (or no method); "
            "exact duplicates have no degree",
        ),
    ],
)
def test_bad_input_is_refused_with_field_and_way_out(spec: dict[str, Any], sentence: str) -> None:
    assert refusal(job_body(**spec)) == [sentence]


def test_a_missing_field_is_named() -> None:
    body = job_body()
    del body["spec"]["data"]
    assert refusal(body) == [
        "spec: data is required: name the rows, as in data: {uri: pvc://CLAIM/PATH}; task.custom alone does without"
    ]
    body["spec"]["task"] = {"custom": {"command": ["python", "train.py"]}}
    assert TrainingJob.parse(body).spec.data is None
    del body["spec"]["task"]
    assert refusal(body) == ["spec.task: is required"]


@pytest.mark.parametrize("name", ["A", "1a", "a.b", "a_b", "-a", "a-", "", "x" * 49])
def test_names_that_leave_no_room_for_suffixes_are_refused(name: str) -> None:
    (sentence,) = refusal(job_body() | {"metadata": {"name": name}})
    assert "at most 48" in sentence


@pytest.mark.parametrize("name", [*sorted(RESERVED_ENV_NAMES), *(f"{prefix}X" for prefix in RESERVED_ENV_PREFIXES)])
def test_variables_that_kubeformer_sets_itself_cannot_be_taken(name: str) -> None:
    (sentence,) = refusal(job_body(pod={"env": [{"name": name, "value": "1"}]}))
    assert sentence.startswith(f"spec.pod.env.0.name: {name!r}: is set by Kubeformer itself")


def test_labels_that_kubeformer_sets_itself_cannot_be_taken() -> None:
    for key in ("kubeformer.dev/training-job", "app.kubernetes.io/managed-by"):
        (sentence,) = refusal(job_body(pod={"labels": {key: "x"}}))
        assert "set by Kubeformer itself" in sentence


@pytest.mark.parametrize("given_twice", [{"env": [{"name": "A"}, {"name": "A", "value": "1"}]}])
def test_a_list_keyed_by_name_holds_each_name_once(given_twice: dict[str, Any]) -> None:
    (sentence,) = refusal(job_body(pod=given_twice))
    assert "Duplicate value" in sentence


@pytest.mark.parametrize("quantity", [0, 2, "2", "500m", "16Gi", "0.5"])
def test_quantities_are_kubernetes_own(quantity: int | str) -> None:
    assert job(workers={"resources": {"limits": {"cpu": quantity}}}).spec.workers.resources.limits["cpu"] == quantity


@pytest.mark.parametrize("quantity", [0.5, -1, "-1", "", "1 Gi", "1e3", "much", True, 2**63])
def test_anything_else_is_no_quantity(quantity: Any) -> None:
    (sentence,) = refusal(job_body(workers={"resources": {"limits": {"cpu": quantity}}}))
    assert "must be a quantity" in sentence


def test_an_explicit_null_is_left_out_as_the_api_server_does() -> None:
    assert job(training=None, pod={"labels": {"team": None}}) == job()


def test_a_tokenizer_is_trained_only_for_a_model_from_the_beginning() -> None:
    data = {"uri": "pvc://a/b", "tokenizer": {"train": {}}}
    assert job(data=data, model={"architecture": {}}).spec.data == job(data=data).spec.data
    (sentence,) = refusal(job_body(data=data, model={"uri": "pvc://models/base"}))
    assert "bring their own tokenizer" in sentence


@pytest.mark.parametrize("task", MEASURES)
def test_the_objective_is_one_that_the_task_measures(task: str) -> None:
    weights = {"model": {"uri": "pvc://models/base"}} if task in ("chat", "preference") else {}
    for metric in get_args(Metric):
        body = job_body(task={task: {}}, training={"objective": {"metric": metric}}, **weights)
        if metric in MEASURES[task]:
            TrainingJob.parse(body)
        else:
            (sentence,) = refusal(body)
            assert "training.objective.metric is none that this task measures" in sentence


@pytest.mark.parametrize("task", ["chat", "preference"])
def test_tuning_goes_on_from_weights(task: str) -> None:
    for model in ({}, {"model": {"architecture": {}}}):
        (sentence,) = refusal(job_body(task={task: {}}, **model))
        assert "name one by model.uri or model.trainingJobRef" in sentence
    for source in ({"uri": "hf://org/name"}, {"trainingJobRef": {"name": "base"}, "lora": {}}):
        assert job(task={task: {}}, model=source).spec.model is not None


def test_adapters_go_beside_given_weights_alone() -> None:
    (sentence,) = refusal(job_body(model={"architecture": {}, "lora": {}}))
    assert "lora goes beside given weights alone" in sentence
    lora = job(model={"uri": "pvc://models/base", "lora": {}}).spec.model
    assert lora is not None
    assert lora.lora is not None
    assert (lora.lora.rank, lora.lora.alpha, lora.lora.targets) == (16, 32.0, ["Attention"])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ({"command": []}, "at least 1 item"),
        ({"command": ["x"], "packages": ["--index-url=http://x"]}, "must be a requirement"),
        ({"command": ["x"], "packages": ["numpy @ file:///x"]}, "must be a requirement"),
        ({"command": ["x"], "git": {"url": "https://me:password@host/x"}}, "without user name"),
        ({"command": ["x"], "git": {"url": "https://host/x", "revision": "--upload-pack=x"}}, "branch, tag or commit"),
        ({"command": ["x"], "git": {"url": "https://host/x"}, "code": {"uri": "pvc://a/b"}}, "at most one of code"),
    ],
)
def test_a_custom_task_cannot_smuggle_options_into_pip_or_git(command: dict[str, Any], words: str) -> None:
    (sentence,) = refusal(job_body(task={"custom": command}))
    assert words in sentence


def test_until_a_job_has_started_everything_may_change_and_then_the_field_and_the_way_are_named() -> None:
    started = job().model_copy(update={"status": TrainingJobStatus(start_time="2026-01-01T00:00:00Z")})
    other = job(training={"epochs": 9}, suspend=True)
    assert other.refused(job()) == []
    assert job(suspend=True, recovery={"maxRestarts": 0}, checkpoint={"keep": 9}).refused(started) == []
    (sentence,) = other.refused(started)
    assert sentence.startswith("spec.training cannot change once training has started; make a new TrainingJob")


def test_a_deployment_can_always_be_replaced_by_another_revision() -> None:
    with pytest.raises(ValidationError, match="must not both be 0"):
        deployment(rollout={"maxSurge": 0, "maxUnavailable": 0})


def test_a_dump_parses_to_the_same_and_holds_no_empty_members() -> None:
    full = job(pod={"labels": {"team": "mail"}}, workers={"resources": {"limits": {"cpu": "1"}}}, training={"steps": 5})
    assert TrainingJob.parse(full.dump()) == full
    assert full.dump()["spec"]["pod"] == {"labels": {"team": "mail"}}
    assert "pod" not in job().dump()["spec"]


def test_resources_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        job().spec.suspend = True  # type: ignore[misc]


@given(st.floats(-1e300, 1e300, allow_subnormal=False) | st.sampled_from([math.nan, math.inf, -math.inf]))
def test_numbers_in_status_are_text_of_four_digits(value: float) -> None:
    text = significant(value)
    assert len(text) <= 12
    if math.isfinite(value):
        assert math.isclose(float(text), value, rel_tol=5.1e-4)
    else:
        assert text in ("NaN", "Infinity", "-Infinity")


def _models(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            for part in _classes(field.annotation):
                _models(part, seen)
    return seen


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _classes(part)]


@pytest.mark.parametrize("kind", [TrainingJob, ModelDeployment])
def test_every_field_says_what_it_means(kind: type[BaseModel]) -> None:
    models = _models(kind, set())
    assert len(models) > 10
    for model in models - {part for part in models if part.__name__ == "ObjectMeta"}:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            assert field.description.rstrip().endswith("."), f"{model.__name__}.{name}: {field.description}"

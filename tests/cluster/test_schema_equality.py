"""The API server and pydantic give one verdict on thousands of resources, and fill in the same defaults.

The CRDs are generated from the models by our own translation, and their rules are written twice, in CEL and in
Python; here a real API server says whether the two are the same. It needs no cluster: etcd and an API server alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import ValidationError

from kubeformer.api.crd import KINDS, Kind, crd, root
from kubeformer.api.rules import sentences
from kubeformer.contract.names import API_VERSION, GROUP
from tests.cluster.apiserver import ApiServer, Client, running_api_server
from tests.cluster.generated import Generator, text, without_empties

THREADS = 4
OBJECTS = 2000  # of each kind
BY_NAME = {kind.name: kind for kind in KINDS}
NOW = "2026-01-01T00:00:00Z"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """An API server that knows our kinds."""
    with running_api_server() as started:
        client = started.client()
        for kind in KINDS:
            code, answer = client.request("POST", DEFINITIONS, crd(kind))
            assert code == 201, answer
        deadline = time.monotonic() + 60
        while any(client.request("GET", path(kind))[0] != 200 for kind in KINDS):
            assert time.monotonic() < deadline, "the API server does not serve the CRDs"
            time.sleep(0.1)
        for kind in KINDS:
            _, answer = client.request("GET", f"{DEFINITIONS}/{kind.plural}.{GROUP}")
            found = {condition["type"]: condition["status"] for condition in answer["status"]["conditions"]}
            assert found.get("NonStructuralSchema", "False") == "False", answer["status"]
        yield started


def path(kind: Kind, rest: str = "") -> str:
    """The path of the kind's objects in the namespace default."""
    return f"/apis/{API_VERSION}/namespaces/default/{kind.plural}{rest}"


def body(kind: str, spec: dict[str, Any], name: str = "x") -> dict[str, Any]:
    """An object as a user writes it."""
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def try_create(client: Client, kind: Kind, given: dict[str, Any]) -> tuple[int, Any]:
    """What the API server would answer to a creation, unknown fields refused as with kubectl."""
    return client.request("POST", path(kind, "?dryRun=All&fieldValidation=Strict"), given)


def disagreement(client: Client, kind: Kind, given: dict[str, Any]) -> tuple[bool, str | None]:
    """Whether the API server accepts the object, and how pydantic disagrees with it, if it does."""
    code, answer = try_create(client, kind, given)
    assert code in (201, 400, 422), f"{code} {answer} for {text(given)}"
    try:
        ours = kind.model.parse(given)
    except ValidationError as error:
        if code != 201:
            return False, None
        return True, f"accepted by the API server, refused by pydantic ({sentences(error)}): {text(given)}"
    if code != 201:
        return False, f"refused by the API server ({answer['message']}), accepted by pydantic: {text(given)}"
    theirs, mine = without_empties(answer["spec"]), without_empties(ours.dump()["spec"])
    if theirs != mine:
        return True, f"defaults differ: API server {text(theirs)}, pydantic {text(mine)}"
    return True, None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_verdicts_on_thousands_of_generated_objects_are_the_same(server: ApiServer, kind: Kind) -> None:
    generator = Generator(API_VERSION, kind.name, root(kind), seed=3)
    objects = [generator.some(mutations=number % 3) for number in range(OBJECTS)]

    def part(start: int) -> list[tuple[bool, str | None]]:
        client = server.client()
        return [disagreement(client, kind, given) for given in objects[start::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        verdicts = [verdict for found in pool.map(part, range(THREADS)) for verdict in found]
    different = [message for _, message in verdicts if message]
    assert not different, f"{len(different)} of {OBJECTS} differ:\n" + "\n".join(different[:8])
    accepted = sum(accepted for accepted, _ in verdicts)
    assert OBJECTS * 0.2 < accepted < OBJECTS * 0.8, f"{accepted} of {OBJECTS} are valid: too few of one sort to tell"


SHORTEST = {
    "TrainingJob": {"task": {"textClassification": {}}, "data": {"uri": "pvc://mail/spam.jsonl"}},
    "ModelDeployment": {"model": {"trainingJobRef": {"name": "spam-filter"}}},
}


@pytest.mark.parametrize("name", SHORTEST)
def test_a_spec_of_three_lines_works_and_gets_the_defaults_that_pydantic_gives(server: ApiServer, name: str) -> None:
    assert disagreement(server.client(), BY_NAME[name], body(name, SHORTEST[name])) == (True, None)


REFUSED: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("TrainingJob", {"trainning": {}}, ('unknown field "spec.trainning"',)),
    ("TrainingJob", {"training": {"batchSize": -1}}, ("spec.training.batchSize", "-1", "greater than or equal to 1")),
    (
        "TrainingJob",
        {"task": {"textClassification": {}, "languageModel": {}}},
        ("spec.task", "exactly one of textClassification, languageModel", "textClassification: {}"),
    ),
    ("TrainingJob", {"task": {"textClassification": None}}, ("spec.task", "textClassification: {}")),
    ("TrainingJob", {"training": {"epochs": 1, "steps": 1}}, ("spec.training", "epochs and steps")),
    ("TrainingJob", {"data": {"uri": "ftp://mail/spam.jsonl"}}, ("spec.data.uri", "ftp://mail/spam.jsonl", "pvc://")),
    ("TrainingJob", {"workers": {"replicas": 0}}, ("spec.workers.replicas", "0", "greater than or equal to 1")),
    ("TrainingJob", {"pod": {"env": [{"name": "RANK", "value": "1"}]}}, ("spec.pod.env[0].name", "RANK", "Kubeformer")),
    ("TrainingJob", {"workers": {"resources": {"limits": {"cpu": 0.5}}}}, ("spec.workers.resources.limits.cpu",)),
    ("ModelDeployment", {"replicas": -1}, ("spec.replicas", "-1", "greater than or equal to 0")),
    ("ModelDeployment", {"rollout": {"maxSurge": 0}}, ("spec.rollout", "must not both be 0")),
    ("ModelDeployment", {"model": {}}, ("spec.model", "trainingJobRef: {name: spam-filter}")),
]


@pytest.mark.parametrize(("name", "change", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_bad_input_is_refused_with_the_field_and_the_way_out(
    server: ApiServer, name: str, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    code, answer = try_create(server.client(), BY_NAME[name], body(name, SHORTEST[name] | change))
    assert code in (400, 422)
    for word in words:
        assert word in answer["message"]


def test_a_name_too_long_for_what_is_made_from_it_is_refused(server: ApiServer) -> None:
    given = body("TrainingJob", SHORTEST["TrainingJob"], name="x" * 49)
    code, answer = try_create(server.client(), BY_NAME["TrainingJob"], given)
    assert code == 422
    assert "at most 48" in answer["message"]


# Changes of a job by whether they are allowed once it has started.
FREE: list[dict[str, Any]] = [
    {"suspend": True},
    {"recovery": {"maxRestarts": 3}},
    {"checkpoint": {"intervalSeconds": 60, "keep": 1}},
    {"activeDeadlineSeconds": 60},
    {"ttlSecondsAfterFinished": 60},
]
FIXED: list[tuple[str, dict[str, Any]]] = [
    ("task", {"task": {"textClassification": {"maxLength": 64}}}),
    ("model", {"model": {"architecture": {}}}),
    ("data", {"data": {"uri": "pvc://mail/other.jsonl"}}),
    ("training", {"training": {"epochs": 5}}),
    ("workers", {"workers": {"replicas": 2}}),
    ("checkpoint.storage", {"checkpoint": {"storage": {"uri": "pvc://c/x"}}}),
    ("output", {"output": {"publish": "Last"}}),
    ("pod", {"pod": {"nodeSelector": {"pool": "gpu"}}}),
]


def changed(client: Client, name: str, change: dict[str, Any]) -> tuple[int, Any, list[str]]:
    """What the API server answers to a change of a TrainingJob, and what pydantic does."""
    kind = BY_NAME["TrainingJob"]
    _, stored = client.request("GET", path(kind, f"/{name}"))
    wanted = stored | {"spec": stored["spec"] | change}
    code, answer = client.request("PUT", path(kind, f"/{name}?dryRun=All&fieldValidation=Strict"), wanted)
    return code, answer, kind.model.parse(wanted).refused(kind.model.parse(stored))  # type: ignore[arg-type, union-attr]


def test_everything_may_be_edited_until_training_starts_and_then_only_what_cannot_change_the_result(
    server: ApiServer,
) -> None:
    client, kind = server.client(), BY_NAME["TrainingJob"]
    code, stored = client.request("POST", path(kind), body("TrainingJob", SHORTEST["TrainingJob"], name="frozen"))
    assert code == 201, stored
    for change in [*FREE, *(change for _, change in FIXED)]:
        code, answer, refused = changed(client, "frozen", change)
        assert (code, refused) == (200, []), answer

    started = {"status": {"startTime": NOW}}
    code, answer = client.request(
        "PATCH", path(kind, "/frozen/status"), started, content_type="application/merge-patch+json"
    )
    assert code == 200, answer
    for change in FREE:
        code, answer, refused = changed(client, "frozen", change)
        assert (code, refused) == (200, []), answer
    for field, change in FIXED:
        code, answer, refused = changed(client, "frozen", change)
        assert code == 422
        assert len(refused) == 1
        assert refused[0] in answer["message"]
        assert f"spec.{field} cannot change" in refused[0]
        assert "make a new TrainingJob" in refused[0]


def test_the_status_is_stored_as_it_was_written_so_that_an_equal_one_need_not_be_written_again(
    server: ApiServer,
) -> None:
    client, kind = server.client(), BY_NAME["ModelDeployment"]
    client.request("POST", path(kind), body("ModelDeployment", SHORTEST["ModelDeployment"], name="status"))
    condition = {
        "type": "Ready",
        "status": "Unknown",
        "reason": "Pending",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = {"conditions": [condition], "replicas": 1, "revisions": [{"name": "r1"}], "selector": "a=b"}
    code, answer = client.request(
        "PATCH", path(kind, "/status/status"), {"status": status}, content_type="application/merge-patch+json"
    )
    assert code == 200, answer
    assert answer["status"] == status


def test_a_deployment_scales_by_the_scale_subresource(server: ApiServer) -> None:
    client, kind = server.client(), BY_NAME["ModelDeployment"]
    client.request("POST", path(kind), body("ModelDeployment", SHORTEST["ModelDeployment"], name="scaled"))
    code, answer = client.request(
        "PATCH", path(kind, "/scaled/scale"), {"spec": {"replicas": 3}}, content_type="application/merge-patch+json"
    )
    assert code == 200, answer
    assert client.request("GET", path(kind, "/scaled"))[1]["spec"]["replicas"] == 3


SHOWN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "TrainingJob",
        {
            "conditions": [{"type": "Succeeded", "status": "Unknown", "reason": "Training", "lastTransitionTime": NOW}],
            "progress": {"summary": "12/50", "eta": "3m"},
            "metrics": [{"name": "train/loss", "value": "0.2314"}],
            "workers": {"desired": 2, "ready": 2, "restarts": 1, "summary": "2/2"},
        },
        {"Status": "Training", "Progress": "12/50", "Loss": "0.2314", "ETA": "3m", "Workers": "2/2", "Restarts": 1},
    ),
    (
        "ModelDeployment",
        {
            "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "lastTransitionTime": NOW}],
            "readyReplicas": 2,
            "engine": "Builtin",
            "resolved": {"modelUri": "pvc://m/x"},
            "revisions": [{"name": "old"}, {"name": "new"}],
            "url": "http://x/v1",
        },
        {
            "Ready": "True",
            "Reason": "Serving",
            "Replicas": 2,
            "Engine": "Builtin",
            "Model": "pvc://m/x",
            "Revision": "new",
            "URL": "http://x/v1",
        },
    ),
]


@pytest.mark.parametrize(("name", "status", "shown"), SHOWN, ids=lambda value: str(value)[:20])
def test_the_columns_of_kubectl_get_show_what_the_status_says(
    server: ApiServer, name: str, status: dict[str, Any], shown: dict[str, Any]
) -> None:
    client, kind = server.client(), BY_NAME[name]
    client.request("POST", path(kind), body(name, SHORTEST[name], name="columns"))
    code, answer = client.request(
        "PATCH", path(kind, "/columns/status"), {"status": status}, content_type="application/merge-patch+json"
    )
    assert code == 200, answer
    _, table = client.request("GET", path(kind, "/columns"), accept="application/json;as=Table;v=v1;g=meta.k8s.io")
    names = [column["name"] for column in table["columnDefinitions"]]
    cells = dict(zip(names, table["rows"][0]["cells"], strict=True))
    assert {column: cells[column] for column in shown} == shown

"""The writer sends what server-side apply needs, and tells failures apart."""

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from kubeformer.cluster.resources import RESOURCES
from kubeformer.cluster.writer import ClusterWriter, TokenBucket
from kubeformer.control.ports import Primary, Refused, Why, Written
from kubeformer.kit.plan import Delete
from kubeformer.kit.view import Key
from tests.unit.cluster.fakes import serving, status

BOX = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "lab", "name": "box"}, "data": {"a": "1"}}
JOB = Primary(Key("TrainingJob", "lab", "spam"), "kubeformer.dev/v1alpha1", "u1", "7")


class Recording:
    """Answers with `answer` and keeps what was asked."""

    def __init__(self, answer: Callable[[], web.Response] | None = None) -> None:
        self.answer = answer
        self.requests: list[tuple[str, str, dict[str, str], Any, str]] = []

    async def __call__(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append((request.method, request.path, dict(request.query), body, request.content_type))
        return self.answer() if self.answer else web.json_response({"metadata": {"resourceVersion": "8"}})


def writer(transport: Any, leads: bool = True, counted: list[Any] | None = None) -> ClusterWriter:
    def count(verb: str, kind: str, outcome: str) -> None:
        if counted is not None:
            counted.append((verb, kind, outcome))

    return ClusterWriter(transport, leads=lambda: leads, bucket=TokenBucket(1e6, 100, lambda: 0.0), count=count)


async def test_an_apply_names_its_manager_forces_is_strict_and_carries_our_label() -> None:
    server = Recording()
    async with serving(server) as transport:
        outcome = await writer(transport).apply("toys", BOX)
    assert isinstance(outcome, Written)
    method, path, query, body, content_type = server.requests[0]
    assert (method, path) == ("PATCH", "/api/v1/namespaces/lab/configmaps/box")
    assert query == {"fieldManager": "toys", "force": "true", "fieldValidation": "Strict"}
    assert content_type == "application/apply-patch+yaml"
    assert body["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "kubeformer"}
    assert body["data"] == BOX["data"]


async def test_a_status_goes_to_its_subresource_with_the_version_as_precondition_and_without_nulls() -> None:
    server = Recording()
    async with serving(server) as transport:
        await writer(transport).status("toys", JOB, {"startTime": None, "step": 1})
    _, path, _, body, _ = server.requests[0]
    assert path == "/apis/kubeformer.dev/v1alpha1/namespaces/lab/trainingjobs/spam/status"
    assert body["metadata"] == {"namespace": "lab", "name": "spam", "resourceVersion": "7"}
    assert body["status"] == {"step": 1}


async def test_a_deletion_carries_uid_and_version_as_preconditions() -> None:
    server = Recording(lambda: web.json_response({"kind": "Status", "status": "Success"}))
    async with serving(server) as transport:
        outcome = await writer(transport).delete(Delete(Key("Job", "lab", "w"), "u9", "55", "Foreground"))
    assert outcome == Written({})
    method, path, _, body, _ = server.requests[0]
    assert (method, path) == ("DELETE", "/apis/batch/v1/namespaces/lab/jobs/w")
    assert body["preconditions"] == {"uid": "u9", "resourceVersion": "55"}
    assert body["propagationPolicy"] == "Foreground"


async def test_finalizers_are_written_only_on_the_version_that_was_seen() -> None:
    server = Recording()
    async with serving(server) as transport:
        await writer(transport).finalizers("toys", JOB, ("a", "b"))
    _, _, _, body, content_type = server.requests[0]
    assert body == {"metadata": {"uid": "u1", "resourceVersion": "7", "finalizers": ["a", "b"]}}
    assert content_type == "application/merge-patch+json"


@pytest.mark.parametrize(
    ("code", "reason", "why"),
    [
        (400, "BadRequest", Why.INVALID),
        (401, "Unauthorized", Why.UNAVAILABLE),
        (403, "Forbidden", Why.FORBIDDEN),
        (404, "NotFound", Why.NOT_FOUND),
        (409, "AlreadyExists", Why.EXISTS),
        (409, "Conflict", Why.CONFLICT),
        (422, "Invalid", Why.INVALID),
        (429, "TooManyRequests", Why.UNAVAILABLE),
        (500, "InternalError", Why.UNAVAILABLE),
        (504, "Timeout", Why.UNAVAILABLE),
    ],
)
async def test_every_failure_has_its_name_and_is_counted(code: int, reason: str, why: Why) -> None:
    counted: list[Any] = []
    async with serving(Recording(lambda: status(code, reason, "because"))) as transport:
        outcome = await writer(transport, counted=counted).create("toys", BOX)
    assert outcome == Refused(why, "because")
    assert counted == [("create", "ConfigMap", why)]


async def test_who_does_not_lead_sends_nothing() -> None:
    server = Recording()
    async with serving(server) as transport:
        outcome = await writer(transport, leads=False).apply("toys", BOX)
    assert isinstance(outcome, Refused)
    assert outcome.why is Why.FENCED
    assert server.requests == []


@given(st.floats(0.1, 1000), st.integers(1, 50), st.lists(st.floats(0, 5), min_size=1, max_size=80))
def test_a_token_bucket_never_lets_more_through_than_its_burst_and_rate(
    rate: float, burst: int, pauses: list[float]
) -> None:
    now = 0.0
    bucket = TokenBucket(rate, burst, lambda: now)
    released = []
    for pause in pauses:
        now += pause
        released.append(now + bucket.reserve())
    for first, start in enumerate(released):
        for last in range(first, len(released)):
            allowed = burst + rate * (released[last] - start)
            assert last - first + 1 <= allowed + 1 + 1e-6


def test_paths_are_those_of_the_api() -> None:
    assert RESOURCES["Pod"].path() == "/api/v1/pods"
    assert RESOURCES["Node"].path("lab", "n1") == "/api/v1/nodes/n1"
    assert RESOURCES["Deployment"].path("lab") == "/apis/apps/v1/namespaces/lab/deployments"
    key = Key("ModelDeployment", "lab", "spam")
    assert RESOURCES["ModelDeployment"].path_of(key, "status").endswith("/lab/modeldeployments/spam/status")

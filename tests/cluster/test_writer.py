"""What the writer does to a real API server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from kubeformer.cluster.resources import RESOURCES
from kubeformer.cluster.transport import Transport
from kubeformer.cluster.writer import ClusterWriter, TokenBucket
from kubeformer.control.ports import Primary, Refused, Why, Written
from kubeformer.kit.plan import Delete
from kubeformer.kit.view import Key
from tests.cluster.controlplane import ControlPlane, namespace, running_control_plane, training_job

LAB = "writer-lab"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with running_control_plane() as plane:
        yield plane


@pytest.fixture
async def transport(plane: ControlPlane) -> AsyncIterator[Transport]:
    async with await plane.transport() as transport:
        await namespace(transport, LAB)
        yield transport


@pytest.fixture
def writer(transport: Transport) -> ClusterWriter:
    return ClusterWriter(transport, leads=lambda: True, bucket=TokenBucket(100, 100, time.monotonic))


def box(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": LAB, "name": name}, "data": data}


def written(outcome: object) -> dict[str, Any]:
    assert isinstance(outcome, Written), outcome
    return dict(outcome.body)


def refused(outcome: object) -> Refused:
    assert isinstance(outcome, Refused), outcome
    return outcome


async def job(transport: Transport, name: str) -> Primary:
    answer = await transport.request("POST", RESOURCES["TrainingJob"].path(LAB), body=training_job(LAB, name))
    assert answer.ok, answer.message
    m = answer.body["metadata"]
    return Primary(Key("TrainingJob", LAB, name), answer.body["apiVersion"], m["uid"], m["resourceVersion"])


async def test_an_apply_creates_then_changes_then_is_nothing(writer: ClusterWriter) -> None:
    made = written(await writer.apply("ours", box("same", a="1", b="2")))
    changed = written(await writer.apply("ours", box("same", a="1", c="3")))
    assert changed["data"] == {"a": "1", "c": "3"}, "what is no longer said is taken away"
    again = written(await writer.apply("ours", box("same", a="1", c="3")))
    versions = [body["metadata"]["resourceVersion"] for body in (made, changed, again)]
    assert versions[0] != versions[1] == versions[2]


async def test_an_apply_takes_our_fields_back_and_leaves_those_of_others(writer: ClusterWriter) -> None:
    await writer.apply("ours", box("shared", a="1"))
    await writer.apply("theirs", box("shared", a="2", b="2"))
    body = written(await writer.apply("ours", box("shared", a="1")))
    assert body["data"] == {"a": "1", "b": "2"}


async def test_an_unknown_field_and_an_impossible_value_are_invalid_and_named(writer: ClusterWriter) -> None:
    typo = {**box("typo"), "dataa": {"a": "1"}}
    outcome = refused(await writer.apply("ours", typo))
    assert outcome.why is Why.INVALID
    assert "dataa" in outcome.message
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": LAB, "name": "door"},
        "spec": {"ports": [{"port": 70000}]},
    }
    outcome = refused(await writer.apply("ours", service))
    assert outcome.why is Why.INVALID
    assert "spec.ports[0].port" in outcome.message


async def test_a_namespace_that_is_not_there_is_not_found_and_one_that_goes_is_forbidden(
    writer: ClusterWriter, transport: Transport
) -> None:
    body = {**box("lost"), "metadata": {"namespace": "nowhere", "name": "lost"}}
    assert refused(await writer.apply("ours", body)).why is Why.NOT_FOUND
    await namespace(transport, "going")
    await transport.request("DELETE", "/api/v1/namespaces/going")  # stays Terminating: nobody here finishes it
    body = {**box("late"), "metadata": {"namespace": "going", "name": "late"}}
    assert refused(await writer.apply("ours", body)).why is Why.FORBIDDEN


async def test_a_create_leaves_alone_what_exists(writer: ClusterWriter) -> None:
    written(await writer.create("ours", box("claim", a="1")))
    assert refused(await writer.create("ours", box("claim", a="2"))).why is Why.EXISTS


async def test_a_deletion_hits_only_what_was_seen(writer: ClusterWriter) -> None:
    body = written(await writer.apply("ours", box("target", a="1")))
    key, uid, version = Key("ConfigMap", LAB, "target"), body["metadata"]["uid"], body["metadata"]["resourceVersion"]
    assert refused(await writer.delete(Delete(key, "another-uid"))).why is Why.CONFLICT
    await writer.apply("ours", box("target", a="2"))
    assert refused(await writer.delete(Delete(key, uid, version))).why is Why.CONFLICT
    written(await writer.delete(Delete(key, uid)))
    assert refused(await writer.delete(Delete(key, uid))).why is Why.NOT_FOUND


async def test_a_status_is_replaced_as_a_whole_and_touches_nothing_else(
    writer: ClusterWriter, transport: Transport
) -> None:
    primary = await job(transport, "status")
    condition = {
        "type": "Valid",
        "status": "True",
        "reason": "Accepted",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    written(await writer.status("ours", primary, {"observedGeneration": 1, "conditions": [condition]}))
    stale = refused(await writer.status("ours", primary, {"observedGeneration": 2}))
    assert stale.why is Why.CONFLICT, "a status is decided on the version that was seen"
    version = (await transport.get(RESOURCES["TrainingJob"].path_of(primary.key))).body["metadata"]["resourceVersion"]
    now = replace(primary, resource_version=version)
    body = written(await writer.status("ours", now, {"observedGeneration": 2}))
    assert body["status"] == {"observedGeneration": 2}
    assert body["metadata"]["generation"] == 1


async def test_a_status_for_a_namesake_that_was_made_since_is_a_conflict_and_for_a_deleted_one_not_found(
    writer: ClusterWriter, transport: Transport
) -> None:
    old = await job(transport, "namesake")
    path = RESOURCES["TrainingJob"].path(LAB, "namesake")
    await transport.request("DELETE", path)
    assert refused(await writer.status("ours", old, {"observedGeneration": 1})).why is Why.NOT_FOUND
    await job(transport, "namesake")
    assert refused(await writer.status("ours", old, {"observedGeneration": 1})).why is Why.CONFLICT
    assert "status" not in (await transport.get(path)).body


async def test_finalizers_are_set_on_the_version_that_was_seen_and_the_last_one_lets_go(
    writer: ClusterWriter, transport: Transport
) -> None:
    primary = await job(transport, "held")
    path = RESOURCES["TrainingJob"].path(LAB, "held")
    body = written(await writer.finalizers("ours", primary, ("kubeformer.dev/checkpoints",)))
    assert body["metadata"]["finalizers"] == ["kubeformer.dev/checkpoints"]
    assert refused(await writer.finalizers("ours", primary, ())).why is Why.CONFLICT
    going = (await transport.request("DELETE", path)).body["metadata"]
    now = replace(primary, resource_version=going["resourceVersion"])
    written(await writer.finalizers("ours", now, ()))
    assert (await transport.get(path)).status == 404


async def test_an_api_server_that_is_down_is_unavailable_not_an_exception(
    plane: ControlPlane, writer: ClusterWriter
) -> None:
    plane.kill("kube-apiserver")
    try:
        assert refused(await writer.apply("ours", box("dark", a="1"))).why is Why.UNAVAILABLE
    finally:
        plane.start("kube-apiserver")
        await asyncio.wait_for(plane.ready(), 180)
    written(await writer.apply("ours", box("dark", a="1")))

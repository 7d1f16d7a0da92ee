"""The operator's process against a real API server: it reconciles, keeps quiet, and outlives every kill.

Most tests run toy planners, so that what they find is the loop's doing; the last ones run the real planners.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from kubeformer.app import operator as wiring
from kubeformer.app.settings import Settings
from kubeformer.cluster.resources import RESOURCES
from kubeformer.cluster.transport import Transport
from tests.cluster import toy
from tests.cluster.controlplane import (
    OPERATOR,
    SECOND,
    SYSTEM,
    ControlPlane,
    eventually,
    namespace,
    running_control_plane,
    training_job,
)
from tests.cluster.operatorprocess import PLANNERS, QUICK, OperatorProcess, logs, running_operator

MERGE = "application/merge-patch+json"
QUIET_SECONDS = 15.0


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with running_control_plane() as plane:
        yield plane
        print(logs(plane.folder))  # pytest shows it where something failed


class Lab:
    """A namespace of a test's own, and what the test does in it."""

    def __init__(self, plane: ControlPlane, transport: Transport, name: str) -> None:
        self.plane, self.transport, self.name = plane, transport, name

    def path(self, kind: str, name: str | None = None) -> str:
        return RESOURCES[kind].path(self.name, name)

    async def get(self, kind: str, name: str) -> dict[str, Any] | None:
        answer = await self.transport.get(self.path(kind, name))
        return dict(answer.body) if answer.ok else None

    async def make_job(self, name: str, **spec: Any) -> None:
        async def made() -> bool:
            body = training_job(self.name, name, **spec)
            answer = await self.transport.request("POST", self.path("TrainingJob"), body=body)
            assert answer.status not in (400, 422), answer.message
            return answer.status in (201, 409)

        await eventually(made, f"TrainingJob {name} is made")

    async def patch(self, kind: str, name: str, patch: dict[str, Any]) -> None:
        answer = await self.transport.request("PATCH", self.path(kind, name), body=patch, content_type=MERGE)
        assert answer.ok, answer.message

    async def delete(self, kind: str, name: str) -> None:
        answer = await self.transport.request("DELETE", self.path(kind, name))
        assert answer.ok, answer.message

    async def condition(self, name: str, kind: str = "Valid") -> dict[str, Any]:
        body = await self.get("TrainingJob", name)
        conditions = ((body or {}).get("status") or {}).get("conditions") or []
        return next((c for c in conditions if c["type"] == kind), {})

    async def valid(self, name: str) -> None:
        async def check() -> bool:
            return (await self.condition(name)).get("status") == "True"

        await eventually(check, f"{name} is Valid")

    async def uids(self, *names: str) -> dict[str, str]:
        found = {}
        for name in names:
            for kind, child in (("ConfigMap", f"{name}-settings"), ("Service", f"{name}-workers")):
                body = await self.get(kind, child)
                assert body is not None, child
                found[child] = body["metadata"]["uid"]
        return found


@pytest.fixture
async def lab(plane: ControlPlane) -> AsyncIterator[Lab]:
    async with await plane.transport() as transport:
        name = f"lab-{random.getrandbits(32):08x}"
        await namespace(transport, name)
        yield Lab(plane, transport, name)
        for item in (await transport.get(RESOURCES["TrainingJob"].path())).body["items"]:
            m = item["metadata"]
            path = RESOURCES["TrainingJob"].path(m["namespace"], m["name"])
            await transport.request("PATCH", path, body={"metadata": {"finalizers": []}}, content_type=MERGE)
            await transport.request("DELETE", path)


def writes(plane: ControlPlane, user: str = OPERATOR, since: int = 0) -> list[str]:
    """The operator's writes but for its Lease: verb, resource, name, subresource."""
    described = []
    for entry in plane.writes(user, since):
        where = entry["objectRef"]
        if where["resource"] != "leases":
            described.append(
                f"{entry['verb']} {where['resource']} {where.get('name')} {where.get('subresource', '')}".strip()
            )
    return described


async def test_a_job_gets_its_children_and_a_status_and_an_event(plane: ControlPlane, lab: Lab) -> None:
    with running_operator(plane):
        await lab.make_job("one")
        await lab.valid("one")
        settings = await lab.get("ConfigMap", "one-settings")
        assert settings is not None
        assert settings["data"] == {"epochs": "3"}
        managers = {m["manager"] for m in settings["metadata"]["managedFields"]}
        assert managers == {"trainingjob-controller"}

        async def told() -> Any:
            events = (await lab.transport.get(lab.path("Event"))).body["items"]
            return [e for e in events if e["regarding"]["name"] == "one" and e["reason"] == "Accepted"]

        assert len(await eventually(told, "the event is there")) == 1


async def test_edits_and_deletions_by_others_are_answered(plane: ControlPlane, lab: Lab) -> None:
    with running_operator(plane):
        await lab.make_job("one")
        await lab.valid("one")
        await lab.patch("TrainingJob", "one", {"spec": {"training": {"epochs": 7}}})

        async def epochs() -> Any:
            body = await lab.get("ConfigMap", "one-settings")
            return (body or {}).get("data", {}).get("epochs")

        async def has(number: str) -> bool:
            return await epochs() == number

        await eventually(lambda: has("7"), "the edit has reached the child")
        await lab.patch("ConfigMap", "one-settings", {"data": {"epochs": "99"}})
        await eventually(lambda: has("7"), "somebody else's change is put right")
        await lab.delete("ConfigMap", "one-settings")
        await eventually(lambda: has("7"), "a deleted child is made again")


async def test_what_the_api_server_refuses_is_told_to_the_user_and_hurts_no_other_job(
    plane: ControlPlane, lab: Lab
) -> None:
    with running_operator(plane):
        await lab.make_job("invalid")
        await lab.make_job("fine")
        await lab.valid("fine")

        async def rejected() -> Any:
            condition = await lab.condition("invalid")
            return condition if condition.get("reason") == "Rejected" else None

        condition = await eventually(rejected, "the refusal is a condition")
        assert condition["status"] == "False"
        assert "The API server refuses Service invalid-workers" in condition["message"]
        assert "spec.ports[0].port" in condition["message"]


async def test_with_nothing_to_do_it_writes_nothing_but_its_lease_and_kopf_nothing_ever(
    plane: ControlPlane, lab: Lab
) -> None:
    with running_operator(plane):
        for n in range(5):
            await lab.make_job(f"job-{n}")
        for n in range(5):
            await lab.valid(f"job-{n}")

        async def at_rest() -> bool:
            count = len(plane.writes())
            await asyncio.sleep(2)
            return writes(plane, since=count) == []

        await eventually(at_rest, "everything is done")
        before = len(plane.writes())
        await asyncio.sleep(QUIET_SECONDS)
        later = plane.writes(since=before)
        assert writes(plane, since=before) == []
        assert {entry["objectRef"]["resource"] for entry in later} == {"leases"}
        body = await lab.get("TrainingJob", "job-0")
        assert body is not None
        assert "finalizers" not in body["metadata"]
        assert "annotations" not in body["metadata"]
        agents = {entry["userAgent"] for entry in plane.writes()}
        assert agents == {"kubeformer-operator"}


async def test_a_restart_changes_nothing(plane: ControlPlane, lab: Lab) -> None:
    with running_operator(plane) as first:
        await lab.make_job("one")
        await lab.valid("one")
        uids = await lab.uids("one")
        body = await lab.get("TrainingJob", "one")
        assert first.terminate() == 0
    with running_operator(plane) as second:
        await second.leads()
        await lab.make_job("two")
        await lab.valid("two")
        after = await lab.get("TrainingJob", "one")
        assert await lab.uids("one") == uids
        assert body is not None
        assert after is not None
        assert after["metadata"]["resourceVersion"] == body["metadata"]["resourceVersion"]


async def test_killed_over_and_over_amid_its_work_it_finishes_and_makes_nothing_twice(
    plane: ControlPlane, lab: Lab
) -> None:
    names = [f"job-{n}" for n in range(12)]
    before = len(plane.writes())
    for round_ in range(3):
        with running_operator(plane, writesPerSecond=20, writeBurst=1) as operator:
            await operator.leads()
            for name in names[round_ * 4 : round_ * 4 + 4]:
                await lab.make_job(name)
            count = len(plane.writes())
            await eventually(lambda seen=count: len(plane.writes()) > seen + 3, "it is in the middle of its work")
            operator.kill()
    with running_operator(plane):
        for name in names:
            await lab.valid(name)
    created = [
        (e["objectRef"]["resource"], e["objectRef"]["name"])
        for e in plane.writes(since=before)
        if e["responseStatus"]["code"] == 201 and e["objectRef"]["resource"] in ("configmaps", "services")
    ]
    assert len(created) == len(set(created)) == 2 * len(names)


async def test_it_outlives_kills_of_the_api_server_and_of_etcd(plane: ControlPlane, lab: Lab) -> None:
    with running_operator(plane) as operator:
        await lab.make_job("before")
        await lab.valid("before")
        uids = await lab.uids("before")
        for name in ("kube-apiserver", "etcd"):
            await plane.restart(name)
            await lab.make_job(f"after-{name}")
            await lab.valid(f"after-{name}")
        assert operator.process.poll() is None, operator.text[-3000:]
        assert await lab.uids("before") == uids
        await lab.delete("Service", "before-workers")

        async def again() -> bool:
            return await lab.get("Service", "before-workers") is not None

        await eventually(again, "children are still watched")
        await _ready(operator)


async def test_a_second_replica_takes_over_when_the_leader_ends_and_when_it_dies(plane: ControlPlane, lab: Lab) -> None:
    with running_operator(plane) as first:
        await first.leads()
        with running_operator(plane, user=SECOND) as second:
            await _ready(second)
            assert writes(plane, SECOND) == []
            assert first.terminate() == 0
            await second.leads()
            await lab.make_job("one")
            await lab.valid("one")
            with running_operator(plane) as third:
                await _ready(third)
                count = len(plane.writes())
                second.kill()
                await third.leads()
                await lab.make_job("two")
                await lab.valid("two")
                assert writes(plane, since=count)
    answer = await lab.transport.get(RESOURCES["Lease"].path(SYSTEM, "kubeformer-operator"))
    assert answer.body["spec"]["leaseTransitions"] >= 2


async def test_health_and_metrics_tell_how_it_is(plane: ControlPlane, lab: Lab) -> None:
    with running_operator(plane) as operator:
        await lab.make_job("one")
        await lab.valid("one")
        url = await operator.url()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/healthz") as answer:
                assert answer.status == 200
            await _ready(operator)
            async with session.get(f"{url}/metrics") as answer:
                text = await answer.text()
        assert "kubeformer_operator_leader 1.0" in text
        assert 'kubeformer_operator_writes_total{kind="ConfigMap",outcome="Done",verb="apply"}' in text
        assert "kubeformer_operator_audit_repairs_total" in text


async def test_without_kopf_the_audit_alone_finds_what_is_new_changed_and_gone(plane: ControlPlane, lab: Lab) -> None:
    class Deaf(wiring.Doorbell):
        """kopf that never rings."""

        async def run(self) -> None:
            await asyncio.Event().wait()

    settings = Settings.model_validate({**QUICK, "auditSeconds": 1})
    stopping = asyncio.Event()
    async with await plane.transport(OPERATOR) as transport:
        operator = wiring.Operator(settings, transport, toy.controllers(), "deaf", doorbell=Deaf)
        running = asyncio.create_task(operator.run(stopping))
        try:
            await eventually(operator.lease.leads, "it leads")
            await lab.make_job("one")
            await lab.valid("one")
            assert 'audit_repairs_total{kind="TrainingJob"}' in operator.metrics.text().decode()
            await lab.delete("TrainingJob", "one")
            await eventually(
                lambda: all(key.namespace != lab.name for key in operator.store.keys("TrainingJob")),
                "the deletion is noticed",
            )
        finally:
            stopping.set()
            await asyncio.wait_for(running, 60)


async def _ready(operator: OperatorProcess) -> None:
    url = await operator.url()

    async def check() -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz") as answer:
            return answer.status == 200

    await eventually(check, "the operator is ready")


async def test_with_real_planners_a_job_waits_for_its_data_and_then_becomes_an_indexed_job(
    plane: ControlPlane, lab: Lab
) -> None:
    with running_operator(plane, PLANNERS) as operator:
        await lab.make_job("spam")

        async def waits() -> Any:
            condition = await lab.condition("spam")
            return condition if condition.get("status") == "False" else None

        condition = await eventually(waits, "the job says what is missing")
        assert condition["reason"] == "ClaimNotFound"
        claim = {
            "metadata": {"name": "mail"},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        answer = await lab.transport.request("POST", lab.path("PersistentVolumeClaim"), body=claim)
        assert answer.ok, answer.message

        async def made() -> Any:
            return await lab.get("Job", "spam")

        job = await eventually(made, "the claim wakes the job")
        assert job["spec"]["completionMode"] == "Indexed"
        assert await lab.get("Service", "spam-workers") is not None
        assert operator.process.poll() is None
        assert operator.terminate() == 0

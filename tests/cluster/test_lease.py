"""One leads at a time, whatever happens to it or to the API server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from kubeformer.cluster.lease import LeaderLease, LeaseTimes
from kubeformer.cluster.resources import LEASE
from kubeformer.cluster.transport import Transport
from tests.cluster.controlplane import SYSTEM, ControlPlane, eventually, running_control_plane

TIMES = LeaseTimes(lease=4.0, renew_deadline=2.5, retry=0.2)


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with running_control_plane() as plane:
        yield plane


@pytest.fixture
async def transport(plane: ControlPlane) -> AsyncIterator[Transport]:
    async with await plane.transport() as transport:
        yield transport


class Candidate(LeaderLease):
    """One replica. `dies` keeps it from giving the lease back, as kill -9 would."""

    dies = False

    async def _release(self) -> None:
        if not self.dies:
            await super()._release()


def candidate(transport: Transport, name: str, identity: str) -> Candidate:
    return Candidate(transport, SYSTEM, name, identity, TIMES, monotonic=time.monotonic, wall=time.time)


@asynccontextmanager
async def running(*candidates: Candidate) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """Runs candidates, and watches all the time that no two of them believe to lead."""
    tasks = {c.identity: asyncio.create_task(c.run()) for c in candidates}
    both: list[list[str]] = []

    async def watch() -> None:
        while True:
            leading = [c.identity for c in candidates if c.leads()]
            if len(leading) > 1:
                both.append(leading)
            await asyncio.sleep(0.005)

    watcher = asyncio.create_task(watch())
    try:
        yield tasks
    finally:
        for task in (*tasks.values(), watcher):
            task.cancel()
        await asyncio.gather(*tasks.values(), watcher, return_exceptions=True)
    assert both == []


async def test_the_first_leads_and_when_it_ends_well_the_second_leads_at_once(transport: Transport) -> None:
    first, second = candidate(transport, "well", "first"), candidate(transport, "well", "second")
    async with running(first, second) as tasks:
        await eventually(lambda: first.leads() or second.leads(), "somebody leads")
        leader, other = (first, second) if first.leads() else (second, first)
        tasks[leader.identity].cancel()
        started = time.monotonic()
        await eventually(other.leads, "the other leads")
        assert time.monotonic() - started < 60
        assert other.leading.is_set() or await eventually(other.leading.is_set, "it says so")
        assert not leader.leads()


async def test_when_the_leader_dies_the_other_waits_for_the_whole_lease_and_then_leads(transport: Transport) -> None:
    first, second = candidate(transport, "dead", "first"), candidate(transport, "dead", "second")
    async with running(first, second) as tasks:
        await eventually(lambda: first.leads() or second.leads(), "somebody leads")
        leader, other = (first, second) if first.leads() else (second, first)
        leader.dies = True
        tasks[leader.identity].cancel()
        died = time.monotonic()
        await eventually(other.leads, "the other leads")
        assert time.monotonic() - died > TIMES.lease - 2 * TIMES.retry - 1.0
    answer = await transport.get(LEASE.path(SYSTEM, "dead"))
    assert answer.body["spec"]["leaseTransitions"] == 1


async def test_a_leader_that_cannot_renew_stops_leading_before_another_could_and_leads_again_later(
    plane: ControlPlane, transport: Transport
) -> None:
    only = candidate(transport, "cut-off", "only")
    async with running(only):
        await eventually(only.leads, "it leads")
        plane.kill("kube-apiserver")
        cut = time.monotonic()
        await eventually(lambda: not only.leads(), "it stops leading")
        assert time.monotonic() - cut <= TIMES.lease
        await eventually(lambda: not only.leading.is_set(), "and says so")
        plane.start("kube-apiserver")
        await plane.ready()
        await eventually(only.leads, "it leads again")
        await eventually(only.leading.is_set, "and says so")


async def test_a_lease_that_was_given_back_has_no_holder(transport: Transport) -> None:
    only = candidate(transport, "given-back", "only")
    async with running(only):
        await eventually(only.leads, "it leads")
    answer = await transport.get(LEASE.path(SYSTEM, "given-back"))
    assert answer.body["spec"]["holderIdentity"] == ""

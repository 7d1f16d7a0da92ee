"""kopf as a doorbell: it rings for every change, and one that has died is started again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from kubeformer.app.doorbell import Doorbell
from kubeformer.cluster.reader import LiveReader
from kubeformer.cluster.resources import MODEL_DEPLOYMENT, TRAINING_JOB
from kubeformer.cluster.transport import Transport
from kubeformer.control.dependencies import Dependencies
from kubeformer.control.gate import Gate
from kubeformer.control.news import News
from kubeformer.control.queue import WorkQueue
from kubeformer.control.store import Store
from kubeformer.kit.view import Key
from tests.cluster.controlplane import ControlPlane, eventually, namespace, running_control_plane, training_job

LAB = "doorbell-lab"
JOB = Key("TrainingJob", LAB, "one")
PATH = TRAINING_JOB.path(LAB)


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with running_control_plane() as plane:
        yield plane


class House:
    """A store with a doorbell; `missed` counts how often kopf may have missed something.

    `blind`: kopf is started the first time without waiting for the API server's discovery.
    """

    def __init__(self, transport: Transport, namespaces: tuple[str, ...] = (), *, blind: bool = False) -> None:
        self.store, self.missed = Store(), 0
        self._blind, self._reader = blind, LiveReader(transport)
        queue = WorkQueue(time.time, random.random)
        news = News(self.store, queue, Gate(self.store), Dependencies(["TrainingJob", "ModelDeployment"], {}))
        self.doorbell = Doorbell(
            transport.credentials,
            (TRAINING_JOB, MODEL_DEPLOYMENT),
            news,
            namespaces=namespaces,
            jitter=random.random,
            monotonic=time.monotonic,
            discovered=self._discovered,
            after_restart=self._miss,
        )

    def _miss(self) -> None:
        self.missed += 1

    async def _discovered(self, kinds: Iterable[str]) -> bool:
        if self._blind:
            self._blind = False
            return True
        return await self._reader.discovered(kinds)

    def epochs(self, key: Key = JOB) -> Any:
        body = self.store.primary(key)
        return None if body is None else body["spec"].get("training", {}).get("epochs")


async def test_it_rings_for_what_is_there_what_changes_and_what_goes(plane: ControlPlane) -> None:
    async with await plane.transport() as transport:
        for name in (LAB, "elsewhere"):
            await namespace(transport, name)
            body = training_job(name, "one", training={"epochs": 2})
            assert (await transport.request("POST", TRAINING_JOB.path(name), body=body)).ok
        house = House(transport, namespaces=(LAB,))
        running = asyncio.create_task(house.doorbell.run())
        try:
            await eventually(lambda: house.epochs() == 2, "what is there is told")
            patch = {"spec": {"training": {"epochs": 5}}}
            merge = "application/merge-patch+json"
            assert (await transport.request("PATCH", f"{PATH}/one", body=patch, content_type=merge)).ok
            await eventually(lambda: house.epochs() == 5, "the change is told")
            await transport.request("DELETE", f"{PATH}/one")
            await eventually(lambda: house.store.primary(JOB) is None, "the deletion is told")
            assert house.store.keys("TrainingJob") == (), "other namespaces are not watched"
        finally:
            running.cancel()


async def test_kopf_that_dies_because_the_api_server_is_away_is_started_again(plane: ControlPlane) -> None:
    async with await plane.transport() as transport:
        await namespace(transport, LAB)
        plane.kill("kube-apiserver")
        house = House(transport, blind=True)
        running = asyncio.create_task(house.doorbell.run())
        try:
            await eventually(lambda: house.missed > 0, "kopf has died, and is started again")
            plane.start("kube-apiserver")
            await plane.ready()
            body = training_job(LAB, "one", training={"epochs": 3})

            async def made() -> bool:
                return (await transport.request("POST", PATH, body=body)).status in (201, 409)

            await eventually(made, "the job is made")
            await eventually(lambda: house.epochs() == 3, "it rings again")
            assert not running.done()
        finally:
            running.cancel()


async def test_it_waits_for_discovery_because_kopf_stays_deaf_to_kinds_that_it_did_not_find(
    plane: ControlPlane,
) -> None:
    async with await plane.transport() as transport:
        plane.kill("kube-apiserver")
        house = House(transport)
        running = asyncio.create_task(house.doorbell.run())
        try:
            await asyncio.sleep(1)
            assert not house.doorbell.running
            plane.start("kube-apiserver")
            await eventually(lambda: house.epochs() == 3, "it rings for what was there")
        finally:
            running.cancel()

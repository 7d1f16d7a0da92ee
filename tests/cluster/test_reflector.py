"""A reflector against a real API server that is killed, loses its history, and comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from kubeformer.cluster.reflector import Reflector
from kubeformer.cluster.resources import RESOURCES
from kubeformer.cluster.transport import Transport
from kubeformer.control.dependencies import Dependencies
from kubeformer.control.gate import Gate
from kubeformer.control.news import News
from kubeformer.control.queue import WorkQueue
from kubeformer.control.store import Store
from tests.cluster.controlplane import ControlPlane, eventually, namespace, running_control_plane

LAB = "reflector-lab"
OURS = {"labelSelector": "app.kubernetes.io/managed-by=kubeformer"}
PATH = RESOURCES["ConfigMap"].path(LAB)


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with running_control_plane() as plane:
        yield plane


class Mirror:
    """A reflector of our ConfigMaps and the store that it fills."""

    def __init__(self, transport: Transport) -> None:
        self.store = Store()
        queue = WorkQueue(lambda: 0.0, random.random)
        news = News(self.store, queue, Gate(self.store), Dependencies(["TrainingJob"], {}))
        self.reflector = Reflector(transport, RESOURCES["ConfigMap"], news, random.random, selectors=OURS)
        self.transport = transport

    @property
    def names(self) -> set[str]:
        return {c.meta.name for c in self.store.every("ConfigMap") if c.meta.namespace == LAB}

    async def shows(self, *names: str) -> None:
        await eventually(lambda: self.names == set(names), f"the store shows {names}")

    async def make(self, name: str, ours: bool = True) -> None:
        labels = {"app.kubernetes.io/managed-by": "kubeformer" if ours else "somebody"}
        body: dict[str, Any] = {"metadata": {"name": name, "labels": labels}}

        async def made() -> bool:
            return (await self.transport.request("POST", PATH, body=body)).status in (201, 409)

        await eventually(made, f"{name} is made")

    async def remove(self, name: str) -> None:
        async def removed() -> bool:
            return (await self.transport.request("DELETE", f"{PATH}/{name}")).status in (200, 404)

        await eventually(removed, f"{name} is deleted")


@pytest.fixture
async def mirror(plane: ControlPlane) -> AsyncIterator[Mirror]:
    async with await plane.transport() as transport:
        await namespace(transport, LAB)
        mirror = Mirror(transport)
        for name in [item["metadata"]["name"] for item in (await transport.get(PATH)).body["items"]]:
            await mirror.remove(name)
        yield mirror


@asynccontextmanager
async def running(mirror: Mirror) -> AsyncIterator[None]:
    task = asyncio.create_task(mirror.reflector.run())
    try:
        yield
        assert not task.done(), "a reflector never ends by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_it_shows_what_is_there_and_what_changes_and_only_what_carries_the_label(mirror: Mirror) -> None:
    await mirror.make("a")
    await mirror.make("theirs", ours=False)
    async with running(mirror):
        await mirror.shows("a")
        await mirror.make("b")
        await mirror.shows("a", "b")
        await mirror.remove("a")
        await mirror.shows("b")


async def test_an_object_that_loses_the_label_is_gone(mirror: Mirror) -> None:
    await mirror.make("a")
    async with running(mirror):
        await mirror.shows("a")
        patch = {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}
        await mirror.transport.request("PATCH", f"{PATH}/a", body=patch, content_type="application/merge-patch+json")
        await mirror.shows()


async def test_it_outlives_a_kill_of_the_api_server(plane: ControlPlane, mirror: Mirror) -> None:
    await mirror.make("a")
    async with running(mirror):
        await mirror.shows("a")
        await plane.restart("kube-apiserver")
        await mirror.make("b")
        await mirror.remove("a")
        await mirror.shows("b")
        await eventually(lambda: mirror.reflector.alive, "the watch is up again")


async def test_it_outlives_a_kill_of_etcd(plane: ControlPlane, mirror: Mirror) -> None:
    async with running(mirror):
        await mirror.make("a")
        await mirror.shows("a")
        await plane.restart("etcd")
        await mirror.make("b")
        await mirror.shows("a", "b")


async def test_after_a_gap_whose_history_is_gone_it_knows_of_the_deletion(plane: ControlPlane, mirror: Mirror) -> None:
    await mirror.make("gone")
    async with running(mirror):
        await mirror.shows("gone")
    await mirror.remove("gone")
    for n in range(5):
        await mirror.make(f"new-{n}")
    plane.kill("kube-apiserver")
    async with aiohttp.ClientSession() as session:  # etcd forgets everything before now
        etcd = f"http://127.0.0.1:{plane.etcd_port}/v3/kv"
        async with session.post(f"{etcd}/range", json={"key": "AA=="}) as answer:
            revision = (await answer.json(content_type=None))["header"]["revision"]
        async with session.post(f"{etcd}/compaction", json={"revision": revision, "physical": True}) as answer:
            assert answer.status == 200, await answer.text()
    plane.start("kube-apiserver")
    await plane.ready()
    lists = mirror.reflector.lists
    async with running(mirror):
        await mirror.shows(*(f"new-{n}" for n in range(5)))
        assert mirror.reflector.lists > lists, "the old version had to be refused with 410"

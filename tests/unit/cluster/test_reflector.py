"""A reflector keeps its picture true through everything an API server may do to it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from kubeformer.cluster.reflector import Reflector
from kubeformer.cluster.resources import RESOURCES
from kubeformer.cluster.transport import Transport
from kubeformer.control.dependencies import Dependencies
from kubeformer.control.gate import Gate
from kubeformer.control.news import News
from kubeformer.control.queue import WorkQueue
from kubeformer.control.store import Store
from tests.unit.cluster.fakes import pod, pods, serving, status

Script = list[Any]
DEADLINE_SECONDS = 60.0


class Scripted:
    """Answers each list and each watch with the next entry of its script; the last watch stays open.

    A list is a dict, or a status code. A watch is a list of events (dicts, or raw text), or a status code.
    """

    def __init__(self, lists: Script, watches: Script) -> None:
        self.lists, self.watches = list(lists), list(watches)
        self.watched_from: list[str] = []
        self.asked: list[str] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.asked.append(request.query.get("continue", ""))
            answer = self.lists.pop(0)
            return status(answer) if isinstance(answer, int) else web.json_response(answer)
        self.watched_from.append(request.query["resourceVersion"])
        script = self.watches.pop(0) if self.watches else None
        if isinstance(script, int):
            return status(script)
        response = web.StreamResponse()
        await response.prepare(request)
        for event in script or ():
            text = event if isinstance(event, str) else json.dumps(event)
            await response.write(text.encode() + b"\n")
        if script is None:
            await asyncio.sleep(3600)
        return response


def event(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": body}


def error(code: int) -> dict[str, Any]:
    return event("ERROR", {"kind": "Status", "code": code, "message": f"error {code}"})


async def picture(server: Scripted, done: Callable[[Store, Reflector], bool], silence: float = 30.0) -> Store:
    """The store when `done`, of a reflector that watches the scripted server."""
    store = Store()
    queue, gate = WorkQueue(lambda: 0.0, lambda: 0.0), Gate(store)
    news = News(store, queue, gate, Dependencies(["Toy"], {}))
    async with serving(server) as transport:
        reflector = _reflector(transport, news, silence)
        task = asyncio.create_task(reflector.run())
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not done(store, reflector):
                    assert not task.done(), "a reflector never ends by itself"
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
    return store


def _reflector(transport: Transport, news: News, silence: float) -> Reflector:
    return Reflector(transport, RESOURCES["Pod"], news, lambda: 0.0, silence_seconds=silence, longest_pause_seconds=0.1)


def names(store: Store) -> dict[str, int]:
    return {c.meta.name: int(c.meta.resource_version) for c in store.every("Pod")}


async def test_it_lists_page_by_page_and_then_watches_from_there() -> None:
    server = Scripted(
        lists=[pods(pod("a", 3), version=10, proceed="more"), pods(pod("b", 4), version=10)],
        watches=[
            [event("ADDED", pod("c", 11)), event("MODIFIED", pod("a", 12)), event("DELETED", pod("b", 13))],
        ],
    )
    store = await picture(server, lambda s, r: names(s) == {"a": 12, "c": 11})
    assert server.asked == ["", "more"]
    assert server.watched_from[0] == "10"
    assert names(store) == {"a": 12, "c": 11}


async def test_a_watch_that_ends_goes_on_from_the_last_version_bookmarks_included() -> None:
    server = Scripted(
        lists=[pods(version=10)],
        watches=[[event("ADDED", pod("a", 11)), event("BOOKMARK", pod("", 40))], [], [event("ADDED", pod("b", 41))]],
    )
    await picture(server, lambda s, r: names(s) == {"a": 11, "b": 41} and len(server.watched_from) == 4)
    assert server.watched_from == ["10", "40", "40", "41"]
    assert len(server.asked) == 1


async def test_after_410_it_lists_anew_and_tells_what_has_gone_in_between() -> None:
    for gone in (410, [error(410)]):
        server = Scripted(
            lists=[pods(pod("a", 3), pod("b", 4), version=10), pods(pod("b", 4), pod("c", 30), version=40)],
            watches=[gone],
        )
        await picture(server, lambda s, r: names(s) == {"b": 4, "c": 30})


async def test_errors_of_all_kinds_are_outlived() -> None:
    server = Scripted(
        lists=[
            500,
            403,
            503,
            pods(pod("a", 3), version=10),
            pods(pod("a", 3), version=12),
            pods(pod("a", 3), version=14),
        ],
        watches=[
            500,
            [error(500)],
            ["this is not JSON"],
            [event("ADDED", {"no": "metadata"})],
            429,
            [event("ADDED", pod("b", 50))],
        ],
    )
    await picture(server, lambda s, r: "b" in names(s))


async def test_a_silent_stream_is_taken_for_dead_and_opened_again() -> None:
    server = Scripted(lists=[pods(version=10)], watches=[])
    await picture(server, lambda s, r: len(server.watched_from) >= 3, silence=0.1)


async def test_when_the_history_goes_back_the_new_history_is_believed() -> None:
    server = Scripted(
        lists=[pods(pod("a", 900), pod("lost", 901), version=1000), pods(pod("a", 20), version=30)],
        watches=[410, [event("MODIFIED", pod("a", 31))]],
    )
    await picture(server, lambda s, r: names(s) == {"a": 31})


async def test_it_says_when_it_is_in_sync_and_when_it_is_cut_off() -> None:
    server = Scripted(lists=[500, 500, pods(version=10)], watches=[])
    seen = []

    def done(store: Store, reflector: Reflector) -> bool:
        seen.append((reflector.synced.is_set(), reflector.alive))
        return seen[-1] == (True, True)

    await picture(server, done)
    assert (False, False) in seen

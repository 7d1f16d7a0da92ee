"""Events are few: the same one is counted, not repeated, and nobody waits for them."""

import asyncio
from typing import Any

from aiohttp import web

from kubeformer.cluster.events import BUDGET, EventRecorder
from kubeformer.control.ports import Primary
from kubeformer.kit.plan import Event
from kubeformer.kit.view import Key
from tests.unit.cluster.fakes import serving, status

JOB = Primary(Key("TrainingJob", "lab", "spam"), "kubeformer.dev/v1alpha1", "u1", "7")


class Notebook:
    """An API server that takes, or refuses, events."""

    def __init__(self, code: int = 201) -> None:
        self.code = code
        self.posted: list[Any] = []
        self.patched: list[Any] = []

    async def __call__(self, request: web.Request) -> web.Response:
        body = await request.json()
        (self.posted if request.method == "POST" else self.patched).append(body)
        return web.json_response(body) if self.code < 300 else status(self.code, "Nope", "no")


async def told(server: Notebook, events: list[tuple[float, Event]], leads: bool = True) -> None:
    """Records the events at their times and waits until all were tried."""
    now = [0.0]
    async with serving(server) as transport:
        recorder = EventRecorder(transport, "me", lambda: now[0], lambda: leads)
        task = asyncio.create_task(recorder.run())
        for at, event in events:
            now[0] = at
            recorder.record(JOB, event)
            await asyncio.wait_for(recorder.flush(), 60)
        task.cancel()


async def test_an_event_says_about_whom_what_and_when() -> None:
    server = Notebook()
    await told(server, [(1_700_000_000.0, Event("Warning", "Rejected", "no such port"))])
    event = server.posted[0]
    assert event["regarding"]["name"] == "spam"
    assert event["regarding"]["uid"] == "u1"
    assert (event["type"], event["reason"], event["note"]) == ("Warning", "Rejected", "no such port")
    assert event["eventTime"] == "2023-11-14T22:13:20.000000Z"


async def test_the_same_event_within_ten_minutes_is_counted_and_later_it_is_a_new_one() -> None:
    server = Notebook()
    event = Event("Normal", "Started", "")
    await told(server, [(0, event), (10, event), (20, event), (1000, event)])
    assert len(server.posted) == 2
    assert [body["series"]["count"] for body in server.patched] == [2, 3]
    assert server.posted[0]["metadata"]["name"] != server.posted[1]["metadata"]["name"]


async def test_one_object_has_a_budget() -> None:
    server = Notebook()
    await told(server, [(0, Event("Normal", "Step", f"step {n}")) for n in range(3 * BUDGET)])
    assert len(server.posted) == BUDGET


async def test_a_long_message_is_cut_at_what_the_api_server_takes() -> None:
    server = Notebook()
    await told(server, [(0, Event("Normal", "Long", "ä" * 2000))])
    assert len(server.posted[0]["note"].encode()) <= 1024


async def test_a_refused_event_hurts_nobody_and_who_does_not_lead_tells_nothing() -> None:
    server = Notebook(403)
    await told(server, [(0, Event("Normal", "A", "")), (0, Event("Normal", "B", ""))])
    assert len(server.posted) == 2
    quiet = Notebook()
    await told(quiet, [(0, Event("Normal", "A", ""))], leads=False)
    assert quiet.posted == []

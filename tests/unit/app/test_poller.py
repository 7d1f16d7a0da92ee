"""The poller reads every worker's progress, wakes a job only when it matters, and stops when nobody asks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from kubeformer.app.poller import MERE_PROGRESS, Poller, matters, progress_url
from kubeformer.contract.progress import CheckpointRecord, Progress
from kubeformer.control.dependencies import Dependencies
from kubeformer.control.gate import Gate
from kubeformer.control.news import News
from kubeformer.control.queue import WorkQueue
from kubeformer.control.store import Store
from kubeformer.kit.view import Key

JOB = Key("TrainingJob", "lab", "spam")
FIELDS = tuple(Progress().model_dump())


def progress(**fields: Any) -> dict[str, Any]:
    return Progress(**fields).model_dump()


def test_the_fields_of_mere_progress_exist_in_the_contract() -> None:
    assert set(FIELDS) >= MERE_PROGRESS


@given(st.dictionaries(st.sampled_from(FIELDS), st.integers(), max_size=5))
def test_a_change_matters_unless_it_is_mere_progress(changes: dict[str, int]) -> None:
    before = progress()
    changed = {name for name, value in changes.items() if before[name] != value}
    assert matters(before, {**before, **changes}) == bool(changed - MERE_PROGRESS)


def test_a_checkpoint_a_phase_and_the_first_report_matter_and_a_step_does_not() -> None:
    before = progress(phase="Training", step=10)
    assert matters(None, before)
    assert not matters(before, progress(phase="Training", step=11, metrics={"train/loss": 0.1}, heartbeat_time=5.0))
    assert matters(before, progress(phase="Evaluating", step=10))
    saved = CheckpointRecord(step=10, time=1.0, digest="d", path="p")
    assert matters(before, progress(phase="Training", step=10, checkpoint=saved))


class Desk:
    """A poller whose pods are one loopback server; `answers` says what the pod of a path answers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.store = Store()
        self.queue = WorkQueue(lambda: self.now, lambda: 0.0)
        self.leading = asyncio.Event()
        self.news = News(self.store, self.queue, Gate(self.store), Dependencies(["TrainingJob"], {}))
        self.port = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        ip = request.match_info["ip"]
        self.asked.append(ip)
        answer = self.answers.get(ip)
        if answer is None:
            await asyncio.sleep(60)
        if isinstance(answer, int):
            return web.Response(status=answer)
        return web.Response(text=answer) if isinstance(answer, str) else web.json_response(answer)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Poller]:
        app = web.Application()
        app.router.add_get("/{ip}/progress", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        poller = Poller(
            self.store,
            self.news,
            clock=lambda: self.now,
            jitter=lambda: 0.0,
            leading=self.leading,
            poll_seconds=0.01,
            address=lambda ip: f"http://127.0.0.1:{port}/{ip}/progress",
        )
        task = asyncio.create_task(poller.run())
        try:
            yield poller
        finally:
            task.cancel()
            await runner.cleanup()

    async def until(self, check: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not check():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def rounds(self, count: int) -> None:
        seen = len(self.asked)
        await self.until(lambda: len(self.asked) >= seen + count)

    def woken(self) -> bool:
        key = self.queue.take(self.now)
        if key is not None:
            self.queue.done(key)
        return key is not None


async def test_a_job_wakes_for_its_first_report_then_for_what_matters_and_for_steps_every_fifteen_seconds() -> None:
    desk = Desk()
    desk.leading.set()
    desk.answers["10.0.0.1"] = progress(phase="Training", step=1)
    async with desk.running() as poller:
        poller.watch(JOB, (("pod-1", "10.0.0.1"),))
        await desk.until(lambda: desk.store.report("pod-1"))
        assert desk.woken()

        desk.answers["10.0.0.1"] = progress(phase="Training", step=2)
        await desk.until(lambda: _step(desk) == 2)
        assert not desk.woken()

        desk.now += 15
        desk.answers["10.0.0.1"] = progress(phase="Training", step=3)
        await desk.until(lambda: _step(desk) == 3)
        assert desk.woken()

        desk.answers["10.0.0.1"] = progress(phase="Publishing", step=3)
        await desk.until(desk.woken)


async def test_a_report_is_fresh_even_if_it_says_the_same_again() -> None:
    desk = Desk()
    desk.leading.set()
    desk.answers["10.0.0.1"] = progress()
    async with desk.running() as poller:
        poller.watch(JOB, (("pod-1", "10.0.0.1"),))
        await desk.until(lambda: desk.store.report("pod-1"))
        desk.now = 2000.0
        await desk.until(lambda: _time(desk) == 2000.0)


async def test_pods_that_do_not_answer_or_answer_nonsense_hold_nobody_up() -> None:
    desk = Desk()
    desk.leading.set()
    desk.answers = {"error": 500, "text": "not JSON", "list": [1], "huge": "x" * 500_000, "fine": progress()}
    async with desk.running() as poller:
        poller.watch(JOB, tuple((ip, ip) for ip in (*desk.answers, "hangs")))
        await desk.until(lambda: desk.store.report("fine"))
    assert [ip for ip in (*desk.answers, "hangs") if desk.store.report(ip)] == ["fine"]


async def test_who_does_not_lead_polls_nobody_and_nobody_is_polled_whom_no_plan_names() -> None:
    desk = Desk()
    desk.answers = {"a": progress(), "b": progress()}
    async with desk.running() as poller:
        poller.watch(JOB, (("a", "a"),))
        await asyncio.sleep(0.05)
        assert desk.asked == []
        desk.leading.set()
        await desk.rounds(2)
        poller.watch(JOB, (("b", "b"), ("no-ip-yet", "")))
        await desk.until(lambda: desk.asked[-1] == "b")
        desk.asked.clear()
        await desk.rounds(3)
        assert set(desk.asked) == {"b"}
        poller.watch(JOB, ())
        await asyncio.sleep(0.05)
        desk.asked.clear()
        await asyncio.sleep(0.05)
        assert desk.asked == []


def test_addresses_of_both_families() -> None:
    assert progress_url("10.0.0.1") == "http://10.0.0.1:8470/progress"
    assert progress_url("fd00::1") == "http://[fd00::1]:8470/progress"


def _step(desk: Desk) -> Any:
    report = desk.store.report("pod-1")
    return report.body["step"] if report else None


def _time(desk: Desk) -> float | None:
    report = desk.store.report("pod-1")
    return report.time if report else None

"""Loop: takes a key, waits for its own writes to be seen, plans, acts, writes the status, tells events.

    gate -> plan (pure) -> actions in order -> status -> events -> look again

Any step may fail or the process may die between any two: the next plan starts from what is there. A write
that the API server refuses for good becomes a condition of the primary and is tried again ever more
rarely; anything else that goes wrong is tried again soon. One key that raises hurts no other.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kubeformer.control.applied import Applied
from kubeformer.control.conditions import is_refused, with_refusal
from kubeformer.control.dependencies import Dependencies
from kubeformer.control.gate import Gate, Overdue, Wait
from kubeformer.control.news import News
from kubeformer.control.ports import (
    Meter,
    NoMeter,
    Outcome,
    Primary,
    Reader,
    ReadError,
    Recorder,
    Refused,
    Why,
    Writer,
    Written,
)
from kubeformer.control.queue import WorkQueue
from kubeformer.control.sameness import digest, same
from kubeformer.control.store import Store
from kubeformer.kit.child import Json
from kubeformer.kit.plan import Apply, Delete, Event, Plan
from kubeformer.kit.view import Key, View

log = logging.getLogger(__name__)

REFUSED_SECONDS = 2.0  # the least time before what was refused is tried again
STRANGER_SECONDS = 60.0  # how long it is believed that an object we do not watch still exists


@dataclass(frozen=True, slots=True)
class Controller:
    """One primary kind: who plans for it, and how a lasting refusal shows in its conditions."""

    kind: str
    manager: str  # the field manager
    reconcile: Callable[[View, Key, float], Plan]
    refusal: tuple[tuple[str, str], ...] = (("Valid", "False"),)


@dataclass(slots=True)
class _Status:
    """What was last written for a key, and when."""

    sent: bytes
    stored: bytes
    time: float


class Loop:
    """See the module's docstring. `polled` is told which pods (uid, IP) of a key to keep reading."""

    def __init__(
        self,
        controllers: Mapping[str, Controller],
        *,
        store: Store,
        queue: WorkQueue,
        gate: Gate,
        news: News,
        dependencies: Dependencies,
        writer: Writer,
        reader: Reader,
        recorder: Recorder,
        clock: Callable[[], float],
        polled: Callable[[Key, tuple[tuple[str, str], ...]], None] = lambda key, pods: None,
        meter: Meter | None = None,
        progress_seconds: float = 15.0,
    ) -> None:
        self._controllers = dict(controllers)
        self._store = store
        self._queue = queue
        self._gate = gate
        self._news = news
        self._dependencies = dependencies
        self._writer = writer
        self._reader = reader
        self._recorder = recorder
        self._clock = clock
        self._polled = polled
        self._meter: Meter = meter or NoMeter()
        self._progress_seconds = progress_seconds
        self._applied = Applied(store)
        self._statuses: dict[Key, _Status] = {}
        self._strangers: dict[Key, float] = {}  # objects that exist although we do not watch them, and since when

    async def run(self, workers: int, leading: asyncio.Event, stopping: asyncio.Event) -> None:
        """Works on keys while this process leads, until `stopping`; steps that have begun are finished."""
        await asyncio.gather(*(self._work(leading, stopping) for _ in range(workers)))

    async def _work(self, leading: asyncio.Event, stopping: asyncio.Event) -> None:
        stop = asyncio.create_task(stopping.wait())
        try:
            while not stopping.is_set():
                ready = asyncio.create_task(self._next(leading))
                await asyncio.wait({ready, stop}, return_when=asyncio.FIRST_COMPLETED)
                if not ready.done():
                    ready.cancel()
                    break
                key = ready.result()
                try:
                    await self.step(key)
                finally:
                    self._queue.done(key)
        finally:
            stop.cancel()

    async def _next(self, leading: asyncio.Event) -> Key:
        await leading.wait()
        return await self._queue.get()

    async def step(self, key: Key) -> str:
        """One look at one key. Never raises but for cancellation; returns how it ended."""
        started = self._clock()
        try:
            result = await self._step(key, started)
        except Exception:
            log.exception("%s: the step failed and will be tried again", key)
            self._queue.failed(key, self._clock())
            result = "crashed"
        self._meter.reconciled(key.kind, max(0.0, self._clock() - started), result)
        return result

    async def _step(self, key: Key, now: float) -> str:
        verdict = self._gate.check(key, now)
        if isinstance(verdict, Wait):
            self._queue.schedule(key, verdict.until)
            return "waiting"
        if isinstance(verdict, Overdue):
            try:
                for written in verdict.objects:
                    await self._read_live(key, written)
            except ReadError as error:
                log.warning("%s: waits for the API server: %s", key, error)
                self._queue.failed(key, self._clock())
                return "waiting"
        primary = self._store.primary(key)
        if primary is None:
            self._forget(key)
            return "gone"
        plan = self._controllers[key.kind].reconcile(self._store, key, now)
        self._dependencies.note(key, plan.depends_on)
        self._polled(key, plan.poll)
        return await self._carry_out(key, primary, plan)

    async def _carry_out(self, key: Key, primary: Json, plan: Plan) -> str:
        metadata = primary["metadata"]
        identity = Primary(key, primary["apiVersion"], metadata["uid"], metadata["resourceVersion"])
        manager = self._controllers[key.kind].manager

        current = tuple(metadata.get("finalizers") or ())
        wanted = current if plan.finalizers is None else plan.finalizers
        if not set(wanted) <= set(current):  # new ones must stand before there is anything to release
            together = (*current, *(f for f in wanted if f not in current))
            outcome = await self._writer.finalizers(manager, identity, together)
            self._expect(key, key, outcome)
            return self._again(key, outcome, "finalizers")

        status, events, refusal = plan.status, plan.events, None
        for action in plan.actions:
            outcome = await self._act(key, manager, action)
            if isinstance(outcome, Refused):
                if not outcome.why.lasting:
                    return self._again(key, outcome, _describe(action))
                refusal = outcome
                message = f"The API server refuses {_describe(action)}: {outcome.message}"
                base = status if status is not None else primary.get("status") or {}
                verdicts = self._controllers[key.kind].refusal
                status = with_refusal(base, primary, verdicts, message, self._clock())
                events = () if is_refused(primary) else (Event("Warning", outcome.why, message),)
                log.log(logging.DEBUG if is_refused(primary) else logging.WARNING, "%s: %s", key, message)
                break

        look_again = [plan.look_again_at] if plan.look_again_at is not None else []
        if status is not None:
            due = self._status_due(key, primary, status, hurry=not plan.coalesce_status or refusal is not None)
            if due is not None and due > self._clock():
                look_again.append(due)
                events = ()
            elif due is not None:
                outcome = await self._writer.status(manager, identity, status)
                if isinstance(outcome, Refused):
                    return self._again(key, outcome, "status")
                self._expect(key, key, outcome)
                stored = outcome.body.get("status")
                identity = replace(identity, resource_version=outcome.body["metadata"]["resourceVersion"])
                self._statuses[key] = _Status(digest(status), digest(stored), self._clock())
        for event in events:
            self._recorder.record(identity, event)

        if refusal is not None:
            patience = max(REFUSED_SECONDS, refusal.retry_after_seconds or 0.0)
            delay = self._queue.failed(key, self._clock(), patience)
            look_again.append(self._clock() + delay)
            self._queue.schedule(key, min(look_again))
            return "refused"
        if set(wanted) != set(current):
            outcome = await self._writer.finalizers(manager, identity, wanted)
            if isinstance(outcome, Refused):
                return self._again(key, outcome, "finalizers")
            if metadata.get("deletionTimestamp") and not wanted:
                self._gate.released(key, identity.uid, self._clock())
            else:
                self._expect(key, key, outcome)
        self._queue.succeeded(key)
        self._queue.schedule(key, min(look_again, default=None))
        return "done"

    async def _act(self, key: Key, manager: str, action: Apply | Delete) -> Outcome:
        if isinstance(action, Delete):
            outcome = await self._writer.delete(action)
            if isinstance(outcome, Written) or outcome.why is Why.NOT_FOUND:
                self._applied.forget(action.key)
                self._gate.deleted(key, action.key, action.uid, self._clock())
                return Written({})
            return outcome
        metadata = action.body["metadata"]
        target = Key(action.body["kind"], metadata.get("namespace", ""), metadata["name"])
        if action.only_if_absent:
            return await self._create(key, manager, target, action.body)
        if self._applied.needless(target, action.body):
            return Written({})
        outcome = await self._writer.apply(manager, action.body)
        if isinstance(outcome, Written):
            self._applied.note(target, action.body, outcome.body)
            self._expect(key, target, outcome)
        return outcome

    async def _create(self, key: Key, manager: str, target: Key, body: Json) -> Outcome:
        """Creation of what belongs to nobody. If it exists and is not watched, that is believed for a while."""
        since = self._strangers.get(target)
        if self._store.identity(target) is not None or (since is not None and self._clock() < since + STRANGER_SECONDS):
            return Written({})
        outcome = await self._writer.create(manager, body)
        if isinstance(outcome, Refused) and outcome.why is Why.EXISTS:
            self._strangers[target] = self._clock()
            return Written({})
        self._expect(key, target, outcome)
        return outcome

    def _expect(self, key: Key, written: Key, outcome: Outcome) -> None:
        if isinstance(outcome, Written):
            version = outcome.body.get("metadata", {}).get("resourceVersion")
            if version is not None:
                self._gate.wrote(key, written, int(version), self._clock())

    def _again(self, key: Key, outcome: Outcome, what: str) -> str:
        if isinstance(outcome, Written):  # what was written will wake the key by itself; this is for a dead watch
            self._queue.schedule(key, self._clock() + 1.0)
            return "done"
        level = logging.DEBUG if outcome.why in (Why.CONFLICT, Why.FENCED) else logging.WARNING
        log.log(level, "%s: %s: %s: %s", key, what, outcome.why, outcome.message)
        self._queue.failed(key, self._clock(), outcome.retry_after_seconds or 0.0)
        return "failed"

    def _status_due(self, key: Key, primary: Json, status: Mapping[str, Any], *, hurry: bool) -> float | None:
        """When the status should be written; None: it need not be."""
        stored = primary.get("status") or {}
        if same(stored, status):
            return None
        last = self._statuses.get(key)
        if last is not None and last.sent == digest(status) and last.stored == digest(stored):
            return None  # the API server keeps less than we send (it prunes); sending it again would not help
        return self._clock() if hurry or last is None else last.time + self._progress_seconds

    async def _read_live(self, key: Key, written: Key) -> None:
        before = self._store.identity(written)
        body = await self._reader.read(written)
        if body is not None:
            news = self._news.changed(written.kind, body)
        else:
            news = before is not None and self._news.gone(written, before.resource_version)
        self._gate.settled(key, written)
        if news:
            self._meter.repaired(written.kind)

    def _forget(self, key: Key) -> None:
        self._queue.forget(key)
        self._gate.forget(key)
        self._statuses.pop(key, None)
        self._dependencies.note(key, ())
        self._polled(key, ())


def _describe(action: Apply | Delete) -> str:
    if isinstance(action, Delete):
        return f"the deletion of {action.key.kind} {action.key.name}"
    return f"{action.body['kind']} {action.body['metadata']['name']}"

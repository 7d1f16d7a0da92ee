"""EventRecorder: Kubernetes events about primaries, few and aggregated.

The same event (object, type, reason, message) within ten minutes is one object whose count grows; each primary has
a small budget. Events are sent in the background by one task; when the queue is full or the API server does not
want them they are dropped, because an event is never worth a reconcile.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kubeformer.cluster.resources import EVENT
from kubeformer.cluster.transport import MERGE_PATCH, Transport, Unreachable
from kubeformer.cluster.writer import Count
from kubeformer.control.ports import Primary
from kubeformer.kit.child import Json
from kubeformer.kit.plan import Event

log = logging.getLogger(__name__)

SAME_SECONDS = 600.0
BUDGET = 25  # events of one primary at once
BUDGET_SECONDS = 60.0  # after which there is one more
LONGEST_NOTE = 1024  # bytes
WAITING = 1000
REMEMBERED = 4096


@dataclass(slots=True)
class _Series:
    name: str
    first: float
    last: float
    count: int


class EventRecorder:
    """See the module's docstring and control.ports.Recorder. `clock` is seconds since the epoch."""

    def __init__(
        self,
        transport: Transport,
        instance: str,
        clock: Callable[[], float],
        leads: Callable[[], bool],
        count: Count = lambda verb, kind, outcome: None,
    ) -> None:
        self._transport = transport
        self._instance = instance
        self._clock = clock
        self._leads = leads
        self._count = count
        self._queue: asyncio.Queue[tuple[Primary, Event]] = asyncio.Queue(WAITING)
        self._series: OrderedDict[bytes, _Series] = OrderedDict()
        self._budgets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by uid: what is left, as of when

    def record(self, primary: Primary, event: Event) -> None:
        """See control.ports.Recorder."""
        try:
            self._queue.put_nowait((primary, event))
        except asyncio.QueueFull:
            log.warning("too many events; dropped one about %s: %s", primary.key, event.reason)

    async def run(self) -> None:
        """Sends events until cancelled."""
        while True:
            primary, event = await self._queue.get()
            try:
                await self._send(primary, event)
            except Unreachable as error:
                log.warning("event about %s dropped: %s", primary.key, error)
            except Exception:
                log.exception("event about %s dropped", primary.key)
            finally:
                self._queue.task_done()

    async def flush(self) -> None:
        """Waits until all recorded events have been tried."""
        await self._queue.join()

    async def _send(self, primary: Primary, event: Event) -> None:
        if not self._leads():
            return
        now = self._clock()
        what = "\0".join((primary.uid, event.type, event.reason, event.message))
        digest = hashlib.blake2b(what.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        series = self._series.get(digest)
        if series is not None and now - series.last < SAME_SECONDS:
            series.count += 1
            series.last = now
            changed = {"series": {"count": series.count, "lastObservedTime": _time(now)}}
            path = EVENT.path(primary.key.namespace, series.name)
            answer = await self._transport.request("PATCH", path, body=changed, content_type=MERGE_PATCH)
            if answer.status != 404:
                self._counted(answer.ok)
                return
        if not self._within_budget(primary.uid, now):
            return
        # Who the event is about, which it is, and when it began: a replica that sends it again finds it there.
        name = f"{primary.key.name[:200]}.{digest.hex()}{int(now) & 0xFFFFFFFF:08x}"
        body = self._body(primary, event, name, now)
        answer = await self._transport.request("POST", EVENT.path(primary.key.namespace), body=body)
        self._counted(answer.ok)
        if not answer.ok:
            log.info("event about %s refused: %s", primary.key, answer.message)
            return
        self._series[digest] = _Series(name, now, now, 1)
        self._series.move_to_end(digest)
        while len(self._series) > REMEMBERED:
            self._series.popitem(last=False)

    def _counted(self, ok: bool) -> None:
        self._count("event", EVENT.kind, "Done" if ok else "Refused")

    def _within_budget(self, uid: str, now: float) -> bool:
        left, since = self._budgets.pop(uid, (float(BUDGET), now))
        left = min(float(BUDGET), left + (now - since) / BUDGET_SECONDS)
        self._budgets[uid] = (max(0.0, left - 1.0) if left >= 1.0 else left, now)
        while len(self._budgets) > REMEMBERED:
            self._budgets.popitem(last=False)
        return left >= 1.0

    def _body(self, primary: Primary, event: Event, name: str, now: float) -> Json:
        key = primary.key
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"namespace": key.namespace, "name": name},
            "eventTime": _time(now),
            "reportingController": "kubeformer.dev/operator",
            "reportingInstance": self._instance[:128],
            "action": "Reconcile",
            "type": event.type,
            "reason": event.reason[:128],
            "note": event.message.encode("utf-8", "replace")[:LONGEST_NOTE].decode("utf-8", "ignore"),
            "regarding": {
                "apiVersion": primary.api_version,
                "kind": key.kind,
                "namespace": key.namespace,
                "name": key.name,
                "uid": primary.uid,
                "resourceVersion": primary.resource_version,
            },
        }


def _time(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

"""WorkQueue: which key is looked at next.

A key waits at most once however often it is added, is handed to one worker at a time, and is handed out again if
news came meanwhile. Three lanes: what is going away, what has news, what only its time has come for. Within a lane the
namespaces take turns, so that ten thousand jobs in one do not hold up the only job of another; every
eighth turn starts from the last lane, so that no lane starves. Failed keys come back after a delay
that doubles; a plan's "look again at" is one point in time per key, replaced by each plan.

The core is synchronous and takes the time as a parameter; `get` alone waits.
"""

import asyncio
import heapq
from collections import OrderedDict, deque
from collections.abc import Callable
from enum import IntEnum

from kubeformer.kit.view import Key

FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 60.0
LONGEST_NAP_SECONDS = 30.0  # so that a jump of the clock is noticed
TURNS_OF_FIRST_LANES = 8


class Lane(IntEnum):
    """Lower goes first."""

    URGENT = 0
    NEWS = 1
    PERIODIC = 2


class _Line:
    """One lane: a queue for each namespace, which take turns."""

    def __init__(self) -> None:
        self._namespaces: OrderedDict[str, deque[Key]] = OrderedDict()

    def push(self, key: Key) -> None:
        self._namespaces.setdefault(key.namespace, deque()).append(key)

    def pop(self) -> Key | None:
        if not self._namespaces:
            return None
        namespace, keys = self._namespaces.popitem(last=False)
        key = keys.popleft()
        if keys:
            self._namespaces[namespace] = keys  # to the end: the others first
        return key


class WorkQueue:
    """See the module's docstring. `jitter` returns a number in [0, 1); `clock` seconds since the epoch."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._jitter = jitter
        self._lines = {lane: _Line() for lane in Lane}
        self._waiting: dict[Key, Lane] = {}
        self._active: set[Key] = set()
        self._again: dict[Key, Lane] = {}  # active keys that got news
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []  # may hold outdated entries; `_due` decides
        self._count = 0
        self._failures: dict[Key, int] = {}
        self._turn = 0
        self._news = asyncio.Event()

    def __len__(self) -> int:
        """How many keys wait for a worker now (not those whose time has not come)."""
        return len(self._waiting)

    @property
    def delayed(self) -> int:
        """How many keys wait for their time."""
        return len(self._due)

    def add(self, key: Key, lane: Lane = Lane.NEWS) -> None:
        """There is news about a key."""
        if key in self._active:
            self._again[key] = min(lane, self._again.get(key, lane))
            return
        waiting = self._waiting.get(key)
        if waiting is not None and waiting <= lane:
            return
        self._waiting[key] = lane  # an entry in a slower lane is skipped when its turn comes
        self._lines[lane].push(key)
        self._news.set()

    def schedule(self, key: Key, at: float | None) -> None:
        """Look at the key again at a time; None takes an earlier wish back."""
        if at is None:
            self._due.pop(key, None)
            return
        self._due[key] = at
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, key))
        self._news.set()

    def take(self, now: float) -> Key | None:
        """The next key, which is then active until `done`; None if nothing is to be done yet."""
        self._ripen(now)
        self._turn += 1
        lanes = list(Lane) if self._turn % TURNS_OF_FIRST_LANES else list(reversed(Lane))
        for lane in lanes:
            while (key := self._lines[lane].pop()) is not None:
                if self._waiting.get(key) is lane:
                    del self._waiting[key]
                    self._active.add(key)
                    return key
        return None

    def done(self, key: Key) -> None:
        """The worker has finished with a key; if news came meanwhile, it waits again."""
        self._active.discard(key)
        lane = self._again.pop(key, None)
        if lane is not None:
            self.add(key, lane)

    def failed(self, key: Key, now: float, at_least: float = 0.0) -> float:
        """Counts a failure and schedules the next try; returns the delay, between half and all of the doubled one."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        longest = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(failures, 30))
        delay = max(at_least, longest * (0.5 + 0.5 * self._jitter()))
        self.schedule(key, now + delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """The next failure of the key is a first one again."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """The key is gone for good: no schedule, no count. One that is active or waiting is still handed out."""
        self._due.pop(key, None)
        self._failures.pop(key, None)

    def next_due(self) -> float | None:
        """When the next scheduled key is due."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    async def get(self) -> Key:
        """Waits for the next key."""
        while True:
            self._news.clear()
            now = self._clock()
            key = self.take(now)
            if key is not None:
                self._news.set()  # there may be more for the next worker
                return key
            due = self.next_due()
            nap = LONGEST_NAP_SECONDS if due is None else min(LONGEST_NAP_SECONDS, max(0.0, due - now))
            try:
                await asyncio.wait_for(self._news.wait(), nap)
            except TimeoutError:
                continue

    def _ripen(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._due[key]
            self.add(key, Lane.PERIODIC)

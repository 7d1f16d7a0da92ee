"""The queue hands out every key that has news, one worker a key, with everybody getting a turn."""

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kubeformer.control.queue import FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, Lane, WorkQueue
from kubeformer.kit.view import Key


def key(name: str, namespace: str = "lab") -> Key:
    return Key("Toy", namespace, name)


def queue(clock: Callable[[], float] = lambda: 0.0, jitter: Callable[[], float] = lambda: 0.0) -> WorkQueue:
    return WorkQueue(clock, jitter)


def drain(q: WorkQueue, now: float = 0.0) -> list[str]:
    taken = []
    while (k := q.take(now)) is not None:
        taken.append(k.name)
        q.done(k)
    return taken


def test_a_key_that_is_added_twice_is_handed_out_once() -> None:
    q = queue()
    q.add(key("a"))
    q.add(key("a"))
    assert drain(q) == ["a"]


def test_a_key_that_gets_news_while_it_is_worked_on_is_handed_out_again_but_not_before() -> None:
    q = queue()
    q.add(key("a"))
    assert q.take(0) == key("a")
    q.add(key("a"))
    assert q.take(0) is None
    q.done(key("a"))
    assert drain(q) == ["a"]


def test_what_is_going_away_comes_before_news_and_news_before_what_is_merely_due() -> None:
    q = queue()
    q.add(key("due"), Lane.PERIODIC)
    q.add(key("news"))
    q.add(key("going"), Lane.URGENT)
    assert drain(q) == ["going", "news", "due"]


def test_a_key_in_a_slow_lane_is_moved_up_by_news() -> None:
    q = queue()
    q.add(key("a"), Lane.PERIODIC)
    q.add(key("b"))
    q.add(key("a"))
    assert drain(q) == ["b", "a"]


def test_ten_thousand_jobs_in_one_namespace_do_not_hold_up_the_only_job_of_another() -> None:
    q = queue()
    for n in range(10_000):
        q.add(key(f"n{n}", "crowd"))
    q.add(key("only", "quiet"))
    assert "only" in [k.name for _ in range(2) if (k := q.take(0)) is not None]


def test_the_slowest_lane_gets_its_turn_although_news_never_ends() -> None:
    q = queue()
    q.add(key("due"), Lane.PERIODIC)
    taken = []
    for n in range(20):
        q.add(key(f"news{n}"))
        k = q.take(0)
        assert k is not None
        q.done(k)
        taken.append(k.name)
    assert "due" in taken


def test_a_scheduled_key_comes_at_its_time_and_the_last_wish_counts() -> None:
    q = queue()
    q.schedule(key("a"), 10.0)
    q.schedule(key("a"), 5.0)
    q.schedule(key("b"), 7.0)
    q.schedule(key("b"), None)
    assert q.take(4.9) is None
    assert q.next_due() == 5.0
    assert drain(q, 100.0) == ["a"]


def test_failures_wait_twice_as_long_each_time_up_to_a_minute_and_success_starts_anew() -> None:
    q = queue(jitter=lambda: 1.0 - 1e-9)
    delays = [q.failed(key("a"), 0.0) for _ in range(14)]
    assert [round(d / FIRST_DELAY_SECONDS) for d in delays[:5]] == [1, 2, 4, 8, 16]
    assert round(delays[-1], 3) == LONGEST_DELAY_SECONDS
    q.succeeded(key("a"))
    assert round(q.failed(key("a"), 0.0), 6) == FIRST_DELAY_SECONDS


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 1000), st.floats(0, 100))
def test_a_delay_is_at_least_what_the_server_asked_for_and_at_least_half_of_the_doubled_one(
    jitter: float, failures: int, asked: float
) -> None:
    q = queue(jitter=lambda: jitter)
    q._failures[key("a")] = failures
    delay = q.failed(key("a"), 0.0, asked)
    doubled = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(failures, 30))
    assert delay >= asked
    assert doubled / 2 <= delay <= max(doubled, asked)


class AnyUse(RuleBasedStateMachine):
    """Whatever is done to a queue, it behaves like a set of keys with news and a set of keys in work."""

    names = st.sampled_from([key("a"), key("b"), key("c", "other"), key("d", "other")])

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue = queue(lambda: self.now)
        self.wanted: set[Key] = set()  # added or due since they were last handed out
        self.active: set[Key] = set()
        self.due: dict[Key, float] = {}

    @rule(k=names, lane=st.sampled_from(list(Lane)))
    def add(self, k: Key, lane: Lane) -> None:
        self.queue.add(k, lane)
        self.wanted.add(k)

    @rule(k=names, delay=st.one_of(st.none(), st.floats(0, 10)))
    def schedule(self, k: Key, delay: float | None) -> None:
        self.queue.schedule(k, None if delay is None else self.now + delay)
        self.due.pop(k, None)
        if delay is not None:
            self.due[k] = self.now + delay

    @rule(seconds=st.floats(0, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        for k, at in list(self.due.items()):
            if at <= self.now:
                del self.due[k]
                self.wanted.add(k)
        taken = self.queue.take(self.now)
        if taken is None:
            assert not self.wanted - self.active
            return
        assert taken in self.wanted
        assert taken not in self.active
        self.wanted.discard(taken)
        self.active.add(taken)

    @rule(k=names)
    def done(self, k: Key) -> None:
        if k in self.active:
            self.active.discard(k)
            self.queue.done(k)

    @invariant()
    def depth_counts_what_waits(self) -> None:
        assert len(self.queue) <= len(self.wanted)


TestAnyUse: Any = AnyUse.TestCase


async def test_a_waiting_worker_gets_a_key_as_soon_as_there_is_one() -> None:
    now = [0.0]
    q = queue(lambda: now[0])
    first, second = asyncio.create_task(q.get()), asyncio.create_task(q.get())
    await asyncio.sleep(0)
    q.add(key("a"))
    q.add(key("b"))
    taken = await asyncio.wait_for(asyncio.gather(first, second), 30)
    assert {k.name for k in taken} == {"a", "b"}


async def test_a_waiting_worker_gets_a_key_when_its_time_has_come() -> None:
    loop = asyncio.get_running_loop()
    q = queue(loop.time)
    q.schedule(key("a"), loop.time() + 0.05)
    assert await asyncio.wait_for(q.get(), 30) == key("a")

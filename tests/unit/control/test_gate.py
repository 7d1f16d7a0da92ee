"""No key is planned for before the store has seen what was written for it."""

import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer.control.gate import Gate, Overdue, Wait
from kubeformer.control.store import Store
from kubeformer.control.worker import Controller
from kubeformer.kit.child import project
from kubeformer.kit.plan import Apply, Delete, Plan
from kubeformer.kit.view import Key, View
from tests.unit.control.fakes import START, FakeCluster, Process, child, toy

TOY, BOX = Key("Toy", "lab", "bear"), Key("ConfigMap", "lab", "box")


def box(version: int, uid: str = "u", **metadata: Any) -> Any:
    full = {"namespace": "lab", "name": "box", "uid": uid, "resourceVersion": str(version), **metadata}
    return project("ConfigMap", {"metadata": full})


def test_a_key_waits_for_the_version_it_wrote_and_goes_on_when_that_or_a_later_one_is_seen() -> None:
    store = Store()
    gate = Gate(store, patience=3)
    gate.wrote(TOY, BOX, 7, now=0)
    assert gate.check(TOY, 1) == Wait(until=3)
    assert gate.waiters(BOX) == {TOY}
    store.put_child(box(6))
    assert gate.check(TOY, 1) == Wait(until=3)
    store.put_child(box(9))
    assert gate.check(TOY, 1) is None
    assert gate.waiters(BOX) == frozenset()


def test_what_the_store_has_already_seen_is_not_waited_for() -> None:
    store = Store()
    store.put_child(box(7))
    gate = Gate(store)
    gate.wrote(TOY, BOX, 7, now=0)
    assert gate.check(TOY, 0) is None


def test_news_that_does_not_come_in_time_is_to_be_read_live() -> None:
    gate = Gate(Store(), patience=3)
    gate.wrote(TOY, BOX, 7, now=0)
    assert gate.check(TOY, 3) == Overdue((BOX,))
    gate.settled(TOY, BOX)
    assert gate.check(TOY, 3) is None


def test_a_deletion_is_waited_for_until_the_object_is_gone_or_going_or_another() -> None:
    for after in ("gone", "going", "another"):
        store = Store()
        store.put_child(box(7))
        gate = Gate(store)
        gate.deleted(TOY, BOX, "u", now=0)
        assert isinstance(gate.check(TOY, 0), Wait)
        if after == "gone":
            store.remove(BOX, 8)
        elif after == "going":
            store.put_child(box(8, deletionTimestamp="2026-01-01T00:00:00Z"))
        else:
            store.put_child(box(9, uid="next"))
        assert gate.check(TOY, 0) is None, after


def counting_planner() -> Callable[[View, Key, float], Plan]:
    """Wants a number of boxes and gives each a name of its own: a planner that a stale view makes go wrong."""
    serial = itertools.count()

    def reconcile(view: View, key: Key, now: float) -> Plan:
        primary = view.primary(key)
        if primary is None:
            return Plan()
        boxes = view.children("ConfigMap", key.namespace, primary["metadata"]["uid"])
        wanted = primary["spec"]["boxes"]
        actions: list[Apply | Delete] = [
            Apply(child(primary, "ConfigMap", f"box-{next(serial):04d}")) for _ in range(wanted - len(boxes))
        ]
        for extra in boxes[wanted:]:
            actions.append(Delete(Key("ConfigMap", key.namespace, extra.meta.name), extra.meta.uid))
        return Plan(actions=tuple(actions), status={"boxes": len(boxes)})

    return reconcile


class NoGate(Gate):
    """Lets everything through."""

    def check(self, key: Key, now: float) -> None:
        return None


async def surplus(schedule: list[tuple[int, int]], gate: type[Gate]) -> int:
    """How many boxes too many are made or unmade, if that many are wanted, and that many events delivered, in turn."""
    cluster, clock = FakeCluster(), [START]
    cluster.put(toy(boxes=schedule[0][0]))
    process = Process(cluster, {"Toy": Controller("Toy", "toys", counting_planner())}, clock, gate=gate)
    for boxes, delivered in schedule:
        cluster.put({**cluster.objects[TOY], "spec": {"boxes": boxes}})
        process.deliver(1)
        process.queue.add(TOY)  # something unrelated wakes the key, the watch of boxes lags
        clock[0] += 0.001
        await process.step()
        process.deliver(delivered)
    await process.settle()
    assert sum(key.kind == "ConfigMap" for key in cluster.objects) == schedule[-1][0]
    made = sum(n for key, n in cluster.created.items() if key.kind == "ConfigMap")
    unmade = sum(n for key, n in cluster.deleted.items() if key.kind == "ConfigMap")
    steps = [after - before for before, after in itertools.pairwise([0, *(boxes for boxes, _ in schedule)])]
    return max(0, made - sum(n for n in steps if n > 0)) + max(0, unmade + sum(n for n in steps if n < 0))


SCHEDULES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(SCHEDULES)
async def test_however_the_watch_lags_nothing_is_made_twice(schedule: list[tuple[int, int]]) -> None:
    assert await surplus(schedule, Gate) == 0


async def test_without_the_gate_a_lagging_watch_makes_things_twice() -> None:
    assert await surplus([(3, 0), (3, 0), (3, 0)], NoGate) > 0

"""Wherever the operator dies, and whichever write goes wrong, the next look mends it: same end, nothing made twice."""

import pytest

from kubeformer.control.worker import Controller
from kubeformer.kit.plan import Apply, Delete, Event, Plan
from kubeformer.kit.view import Key, View
from tests.unit.control.fakes import START, Death, FakeCluster, Fault, Process, child, toy

TOY = Key("Toy", "lab", "bear")
FINALIZER = "toys.example/tidy"


def reconcile(view: View, key: Key, now: float) -> Plan:
    """A finalizer, two children, a shared claim, a status in two stages; on the way out, a child is deleted first."""
    primary = view.primary(key)
    if primary is None:
        return Plan()
    m = primary["metadata"]
    box = view.child(Key("ConfigMap", key.namespace, f"{key.name}-box"))
    if m.get("deletionTimestamp"):
        if box is not None:
            return Plan(actions=(Delete(Key("ConfigMap", key.namespace, box.meta.name), box.meta.uid),))
        return Plan(finalizers=())
    shelf = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": key.namespace, "name": "shelf"},
        "spec": {"accessModes": ["ReadWriteMany"]},
    }
    actions = (
        Apply(shelf, only_if_absent=True),
        Apply(child(primary, "ConfigMap", f"{key.name}-box", data={"colour": primary["spec"]["colour"]})),
        Apply(child(primary, "Service", f"{key.name}-door", spec={"clusterIP": "None"})),
    )
    door = view.child(Key("Service", key.namespace, f"{key.name}-door"))
    stage = "complete" if box is not None and door is not None else "started"
    before = (primary.get("status") or {}).get("stage")
    return Plan(
        actions=actions,
        status={"stage": stage, "colour": primary["spec"]["colour"]},
        events=(Event("Normal", stage.capitalize(), ""),) if stage != before else (),
        finalizers=(FINALIZER,),
    )


CONTROLLERS = {"Toy": Controller("Toy", "toys", reconcile)}


class Story:
    """What happens to the toy: it is made, repainted, and thrown away. The operator may die in between."""

    def __init__(self, faults: dict[int, Fault]) -> None:
        self.cluster, self.clock, self.deaths = FakeCluster(), [START], 0
        self.cluster.faults = dict(faults)
        self.process = Process(self.cluster, CONTROLLERS, self.clock)

    async def settle(self) -> None:
        while True:
            try:
                return await self.process.settle()
            except Death:
                self.deaths += 1
                self.process = Process(self.cluster, CONTROLLERS, self.clock)

    async def tell(self) -> list[object]:
        """The shapes of the cluster at the three rests."""
        shapes: list[object] = []
        self.cluster.put(toy(colour="brown"))
        await self.settle()
        shapes.append(self.cluster.shape())
        there = self.cluster.objects[TOY]
        self.cluster.put({**there, "spec": {"colour": "white"}})
        await self.settle()
        shapes.append(self.cluster.shape())
        there = self.cluster.objects[TOY]
        self.cluster.put({**there, "metadata": {**there["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})
        await self.settle()
        shapes.append(self.cluster.shape())
        return shapes


async def reference() -> tuple[list[object], Story]:
    story = Story({})
    return await story.tell(), story


async def test_the_story_without_faults_ends_with_the_shared_claim_alone() -> None:
    shapes, story = await reference()
    assert list(story.cluster.objects) == [Key("PersistentVolumeClaim", "lab", "shelf")]
    assert len(shapes) == 3
    assert [reason for _, reason in story.cluster.told] == ["Started", "Complete"]


@pytest.mark.parametrize("fault", list(Fault))
async def test_one_fault_at_any_write_changes_neither_the_ends_nor_the_numbers(fault: Fault) -> None:
    shapes, plain = await reference()
    points = len(plain.cluster.writes)
    assert points >= 10
    for point in range(points):
        story = Story({point: fault})
        assert await story.tell() == shapes, f"{fault} at write {point}"
        assert story.cluster.created == plain.cluster.created, f"{fault} at write {point}"
        assert story.cluster.deleted == plain.cluster.deleted, f"{fault} at write {point}"
        assert story.deaths == (1 if fault in (Fault.DIE_BEFORE, Fault.DIE_AFTER) else 0)


async def test_faults_at_every_second_write_only_make_it_take_longer() -> None:
    shapes, plain = await reference()
    kinds = list(Fault)
    story = Story({point: kinds[point // 2 % len(kinds)] for point in range(0, 60, 2)})
    assert await story.tell() == shapes
    assert story.cluster.created == plain.cluster.created

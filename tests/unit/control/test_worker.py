"""The loop carries plans out: in order, no more than needed, and says what the API server refuses."""

from typing import Any

from kubeformer.control.ports import Refused, Why
from kubeformer.control.worker import Controller
from kubeformer.kit.plan import Apply, Delete, Event, Plan
from kubeformer.kit.view import Key, View
from tests.unit.control.fakes import START, FakeCluster, Process, child, toy

TOY = Key("Toy", "lab", "bear")


class Desk:
    """A cluster with one toy, a process, and the plan that its planner will give next."""

    def __init__(self, **spec: Any) -> None:
        self.cluster, self.clock = FakeCluster(), [START]
        self.body = self.cluster.put(toy(**spec))
        self.plan = Plan()
        self.plans = 0
        controller = Controller("Toy", "toys", self.reconcile, refusal=(("Valid", "False"), ("Ready", "Unknown")))
        self.process = Process(self.cluster, {"Toy": controller}, self.clock)

    def reconcile(self, view: View, key: Key, now: float) -> Plan:
        self.plans += 1
        return self.plan

    def box(self, **content: Any) -> Apply:
        return Apply(child(self.body, "ConfigMap", "box", **content))

    @property
    def status(self) -> Any:
        return self.cluster.objects[TOY].get("status")

    @property
    def writes(self) -> list[str]:
        return [f"{verb} {key.kind}" for verb, key in self.cluster.writes]


async def test_actions_come_before_the_status_and_the_status_before_events() -> None:
    desk = Desk()
    desk.plan = Plan(actions=(desk.box(),), status={"stage": "done"}, events=(Event("Normal", "Done", ""),))
    await desk.process.step()
    assert desk.writes == ["apply ConfigMap", "status Toy"]
    assert desk.cluster.told == [(TOY, "Done")]


async def test_the_same_plan_again_writes_nothing() -> None:
    desk = Desk()
    desk.plan = Plan(actions=(desk.box(data={"a": "1"}),), status={"stage": "done"})
    await desk.process.settle()
    writes, plans = len(desk.cluster.writes), desk.plans
    for _ in range(5):
        desk.process.queue.add(TOY)
        await desk.process.settle()
    assert desk.plans == plans + 5
    assert len(desk.cluster.writes) == writes


async def test_a_child_that_somebody_else_changes_is_put_right() -> None:
    desk = Desk()
    desk.plan = Plan(actions=(desk.box(data={"a": "1"}),))
    await desk.process.settle()
    box = desk.cluster.objects[Key("ConfigMap", "lab", "box")]
    desk.cluster.put({**box, "data": {"a": "2"}})
    await desk.process.settle()
    assert desk.cluster.objects[Key("ConfigMap", "lab", "box")]["data"] == {"a": "1"}


async def test_a_child_that_somebody_deletes_is_made_again() -> None:
    desk = Desk()
    desk.plan = Plan(actions=(desk.box(),))
    await desk.process.settle()
    desk.cluster.remove(Key("ConfigMap", "lab", "box"))
    await desk.process.settle()
    assert Key("ConfigMap", "lab", "box") in desk.cluster.objects


async def test_what_a_job_controller_writes_into_a_status_is_no_reason_to_apply_again() -> None:
    desk = Desk()
    desk.plan = Plan(actions=(Apply(child(desk.body, "Job", "work", spec={"parallelism": 2})),))
    await desk.process.settle()
    work = desk.cluster.objects[Key("Job", "lab", "work")]
    desk.cluster.put({**work, "status": {"active": 2}})
    plans = desk.plans
    await desk.process.settle()
    assert desk.plans > plans
    assert desk.writes == ["apply Job"]


async def test_a_claim_that_exists_already_and_is_not_watched_is_left_alone() -> None:
    desk = Desk()
    shelf = {"apiVersion": "v1", "kind": "Shelf", "metadata": {"namespace": "lab", "name": "shelf"}}
    desk.cluster.put({**shelf, "spec": {"mine": True}})
    desk.plan = Plan(actions=(Apply(shelf, only_if_absent=True),))
    desk.process.store.remove(Key("Shelf", "lab", "shelf"), 10_000)
    for _ in range(3):
        desk.process.queue.add(TOY)
        await desk.process.step()
    assert desk.writes == ["create Shelf"]
    assert desk.cluster.objects[Key("Shelf", "lab", "shelf")]["spec"] == {"mine": True}


async def test_what_the_api_server_refuses_becomes_a_condition_and_is_tried_again_ever_more_rarely() -> None:
    desk = Desk()
    desk.cluster.refuse = lambda body: "Service door is invalid: port 70000" if body["kind"] == "Service" else None
    desk.plan = Plan(
        actions=(desk.box(), Apply(child(desk.body, "Service", "door"))),
        status={"stage": "making", "conditions": [{"type": "Valid", "status": "True"}]},
    )
    await desk.process.settle(horizon=300)
    valid, ready = desk.status["conditions"]
    assert (valid["type"], valid["status"], valid["reason"]) == ("Valid", "False", "Rejected")
    assert valid["message"] == "The API server refuses Service door: Service door is invalid: port 70000"
    assert (ready["type"], ready["status"]) == ("Ready", "Unknown")
    assert desk.status["stage"] == "making"
    assert desk.writes.count("status Toy") == 1
    assert desk.cluster.told == [(TOY, "Invalid")]
    assert 4 <= desk.writes.count("apply Service") <= 20  # in five minutes

    desk.cluster.refuse = lambda body: None
    await desk.process.settle()
    assert desk.status["conditions"] == [{"type": "Valid", "status": "True"}]


async def test_a_write_that_may_have_failed_is_tried_again_and_says_nothing_in_the_status() -> None:
    desk = Desk()
    desk.plan = Plan(actions=(desk.box(),), status={"stage": "done"})
    down = Refused(Why.UNAVAILABLE, "connection refused", retry_after_seconds=7)
    real, desk.cluster.apply = desk.cluster.apply, lambda manager, body: _answer(down)  # type: ignore[method-assign]
    await desk.process.step()
    assert desk.process.results == ["failed"]
    assert desk.status is None
    assert desk.process.queue.next_due() == START + 7
    desk.cluster.apply = real  # type: ignore[method-assign]
    await desk.process.settle()
    assert desk.status == {"stage": "done"}


async def test_a_planner_that_raises_for_one_key_does_not_hurt_another() -> None:
    desk = Desk()
    desk.cluster.put(toy("poison"))

    def reconcile(view: View, key: Key, now: float) -> Plan:
        if key.name == "poison":
            raise ZeroDivisionError("poison")
        return Plan(status={"stage": "done"})

    process = Process(desk.cluster, {"Toy": Controller("Toy", "toys", reconcile)}, desk.clock)
    await process.settle(horizon=20)
    assert desk.status == {"stage": "done"}
    assert process.results.count("crashed") > 3


async def test_mere_progress_is_written_every_fifteen_seconds_and_anything_else_at_once() -> None:
    desk = Desk()
    desk.plan = Plan(status={"step": 0})
    await desk.process.settle()
    written = []
    for second in range(1, 41):
        desk.clock[0] = START + second
        desk.plan = Plan(status={"step": second}, coalesce_status=True)
        desk.process.queue.add(TOY)
        while await desk.process.step():
            desk.process.deliver()
        if not written or written[-1] != desk.status["step"]:
            written.append(desk.status["step"])
    assert written == [0, 15, 30]
    desk.plan = Plan(status={"step": 41, "phase": "Succeeded"})
    desk.process.queue.add(TOY)
    await desk.process.step()
    assert desk.status == {"step": 41, "phase": "Succeeded"}


async def test_the_last_progress_is_written_even_if_nothing_wakes_the_key_again() -> None:
    desk = Desk()
    desk.plan = Plan(status={"step": 0})
    await desk.process.settle()
    desk.plan = Plan(status={"step": 1}, coalesce_status=True)
    desk.process.queue.add(TOY)
    await desk.process.settle()
    assert desk.status == {"step": 1}
    assert desk.clock[0] == START + 15


async def test_a_status_that_the_api_server_prunes_is_not_sent_over_and_over() -> None:
    desk = Desk()
    real = desk.cluster.status

    async def pruning(manager: str, primary: Any, status: Any) -> Any:
        return await real(manager, primary, {k: v for k, v in status.items() if k != "unknown"})

    desk.cluster.status = pruning  # type: ignore[method-assign]
    desk.plan = Plan(status={"stage": "done", "unknown": 1})
    for _ in range(4):
        desk.process.queue.add(TOY)
        await desk.process.settle()
    assert desk.writes == ["status Toy"]


async def test_a_dead_watch_is_noticed_by_the_gate_and_the_object_is_read_live() -> None:
    desk = Desk()
    desk.plan = Plan(actions=(desk.box(),))
    await desk.process.step()
    for _ in range(10):  # no event is ever delivered
        desk.process.queue.add(TOY)
        await desk.process.step()
        desk.clock[0] += 1
    assert desk.process.results.count("waiting") >= 2
    assert desk.process.results[-1] == "done"
    assert desk.process.store.child(Key("ConfigMap", "lab", "box")) is not None


async def test_the_key_waits_while_the_api_server_cannot_be_read() -> None:
    desk = Desk()
    desk.plan = Plan(actions=(desk.box(),))
    await desk.process.step()
    plans = desk.plans
    desk.cluster.unreadable = True
    for _ in range(30):
        desk.clock[0] += 1
        desk.process.queue.add(TOY)
        await desk.process.step()
    assert desk.plans == plans
    desk.cluster.unreadable = False
    desk.clock[0] += 60
    await desk.process.step()
    assert desk.plans == plans + 1


async def test_a_primary_wakes_for_what_its_last_plan_depends_on_and_no_longer_for_what_it_did() -> None:
    desk = Desk()
    claim = Key("ConfigMap", "lab", "words")
    desk.plan = Plan(depends_on=(claim,))
    await desk.process.settle()
    plans = desk.plans
    words = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "lab", "name": "words"}}
    desk.cluster.put(words)
    desk.plan = Plan()
    await desk.process.settle()
    assert desk.plans == plans + 1
    desk.cluster.put({**words, "data": {"a": "b"}})
    await desk.process.settle()
    assert desk.plans == plans + 1


async def test_a_primary_that_is_gone_is_forgotten() -> None:
    desk = Desk()
    desk.plan = Plan(actions=(desk.box(),), look_again_at=START + 5, poll=(("uid", "10.0.0.1"),))
    await desk.process.step()
    assert desk.process.polled[TOY] == (("uid", "10.0.0.1"),)
    desk.cluster.remove(TOY)
    await desk.process.settle()
    assert desk.process.polled[TOY] == ()
    assert desk.process.queue.next_due() is None


async def _answer(outcome: Refused) -> Refused:
    return outcome


async def test_what_was_cleared_away_is_not_made_again_before_the_primarys_end_is_seen() -> None:
    desk, box = Desk(), Key("ConfigMap", "lab", "box")
    going = {**desk.body["metadata"], "finalizers": ["toys/box"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
    desk.cluster.put({**desk.body, "metadata": going})
    desk.plan = Plan(actions=(desk.box(),))
    await desk.process.settle()
    desk.plan = Plan(actions=(Delete(box, desk.cluster.objects[box]["metadata"]["uid"]),), finalizers=())
    desk.process.queue.add(TOY)
    await desk.process.step()
    assert desk.cluster.objects == {}

    desk.plan = Plan(actions=(desk.box(),))  # as a planner says who sees no box and a toy that still waits for one
    assert desk.process.deliver(1) == 1  # the box's end; the toy's is still on its way
    desk.process.queue.add(TOY)
    await desk.process.step()
    assert desk.process.results[-1] == "waiting"
    await desk.process.settle()
    assert desk.process.results[-1] == "gone"
    assert desk.cluster.objects == {}

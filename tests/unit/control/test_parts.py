"""The small parts: what means the same, whom news concerns, what the audit finds."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kubeformer.control.applied import TIDY_AT_LEAST, Applied
from kubeformer.control.audit import Auditor, differences
from kubeformer.control.dependencies import Dependencies
from kubeformer.control.ports import Identity, NoMeter
from kubeformer.control.sameness import same
from kubeformer.control.store import Store
from kubeformer.control.worker import Controller
from kubeformer.kit.child import project
from kubeformer.kit.plan import Plan
from kubeformer.kit.view import Key
from tests.unit.control.fakes import LABEL, START, FakeCluster, Process, toy

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_null_members_and_the_order_of_keys_mean_nothing(value: dict[str, Any]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert same(value, {**backwards, "left out": None})


def test_a_whole_float_is_an_integer_and_true_is_not_one() -> None:
    assert same({"a": 1.0}, {"a": 1})
    assert not same({"a": True}, {"a": 1})
    assert not same({"a": []}, {})
    assert not same({"a": [1, 2]}, {"a": [2, 1]})


def pod(name: str, **metadata: Any) -> Any:
    full = {"namespace": "lab", "name": name, "uid": name, "resourceVersion": "5", **metadata}
    return project("Pod", {"metadata": full})


def test_a_child_concerns_its_owner_and_the_primary_that_its_label_names() -> None:
    dependencies = Dependencies(["Toy"], {LABEL: "Toy"})
    owner = {"kind": "Toy", "name": "bear", "uid": "u", "controller": True}
    assert dependencies.of_child(pod("a", ownerReferences=[owner])) == {Key("Toy", "lab", "bear")}
    assert dependencies.of_child(pod("a", labels={LABEL: "duck"})) == {Key("Toy", "lab", "duck")}
    job = {"kind": "Job", "name": "x", "uid": "u", "controller": True}
    assert dependencies.of_child(pod("a", ownerReferences=[job])) == set()


def test_a_dependency_without_a_name_stands_for_every_object_of_the_kind() -> None:
    dependencies = Dependencies(["Toy"], {})
    bear, duck = Key("Toy", "lab", "bear"), Key("Toy", "lab", "duck")
    dependencies.note(bear, [Key("Pod", "lab", ""), duck])
    assert dependencies.of_child(pod("whatever")) == {bear}
    assert dependencies.of_primary(duck) == {bear, duck}
    dependencies.note(bear, [])
    assert dependencies.of_child(pod("whatever")) == set()
    assert dependencies.of_primary(duck) == {duck}


def test_what_was_applied_to_objects_that_are_gone_is_forgotten() -> None:
    store = Store()
    applied = Applied(store)
    for n in range(5 * TIDY_AT_LEAST):
        metadata = {"namespace": "lab", "name": f"box-{n}", "uid": f"u{n}", "resourceVersion": "5"}
        applied.note(Key("ConfigMap", "lab", f"box-{n}"), {"n": n}, {"metadata": metadata})
    assert len(applied._memories) <= TIDY_AT_LEAST


VERSIONS = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 20), max_size=4)


@given(VERSIONS, VERSIONS)
def test_an_audit_suspects_exactly_what_the_store_is_behind_on(known: dict[str, int], listed: dict[str, int]) -> None:
    def identities(versions: dict[str, int]) -> dict[Key, Identity]:
        return {Key("Toy", "lab", name): Identity(name, version) for name, version in versions.items()}

    expected = {
        name for name in known | listed if (known.get(name, 0) < listed[name] if name in listed else known[name] <= 10)
    }
    assert {key.name for key in differences(identities(known), identities(listed), 10)} == expected


async def test_an_audit_mends_lost_additions_changes_and_deletions_and_nothing_else() -> None:
    cluster = FakeCluster()
    for name in ("kept", "changed", "deleted"):
        cluster.put(toy(name, colour="brown"))
    controller = Controller("Toy", "toys", lambda view, key, now: Plan())
    process = Process(cluster, {"Toy": controller}, [START])
    while await process.step():
        pass
    cluster.put(toy("added"))
    cluster.put({**cluster.objects[Key("Toy", "lab", "changed")], "spec": {"colour": "white"}})
    cluster.remove(Key("Toy", "lab", "deleted"))
    process.heard = len(cluster.events)  # the watch tells nothing of it

    auditor = Auditor(process.store, process.news, cluster, NoMeter(), grace_seconds=0)
    assert await auditor.audit("Toy") == 3
    assert {key.name for key in process.store.keys("Toy")} == {"kept", "changed", "added"}
    changed = process.store.primary(Key("Toy", "lab", "changed"))
    assert changed is not None
    assert changed["spec"] == {"colour": "white"}
    assert len(process.queue) == 3
    assert await auditor.audit("Toy") == 0


async def test_an_audit_that_overtakes_the_watch_lets_it_catch_up() -> None:
    cluster = FakeCluster()
    process = Process(cluster, {"Toy": Controller("Toy", "toys", lambda view, key, now: Plan())}, [START])
    cluster.put(toy("late"))

    class CatchingUp(FakeCluster):
        async def identities(self, kind: str) -> Any:
            found = await cluster.identities(kind)
            process.deliver()  # after the list was read, before its second look
            return found

    auditor = Auditor(process.store, process.news, CatchingUp(), NoMeter(), grace_seconds=0)
    assert await auditor.audit("Toy") == 0

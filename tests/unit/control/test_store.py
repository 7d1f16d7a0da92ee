"""The store keeps the newest it has heard of every object, in whatever order the news came."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeformer.control.store import Store
from kubeformer.kit.child import project
from kubeformer.kit.view import Key

LABEL = "toys.example/toy"


def pod(name: str, version: int, uid: str = "", owner: str = "", label: str = "", **status: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"namespace": "lab", "name": name, "uid": uid or f"uid-of-{name}"}
    metadata["resourceVersion"] = str(version)
    if owner:
        metadata["ownerReferences"] = [{"kind": "Toy", "name": "bear", "uid": owner, "controller": True}]
    if label:
        metadata["labels"] = {LABEL: label}
    return {"metadata": metadata, "status": status}


def test_older_news_of_an_object_is_ignored_and_newer_news_replaces_it() -> None:
    store = Store()
    assert store.put_child(project("Pod", pod("a", 5, phase="Running")))
    assert not store.put_child(project("Pod", pod("a", 4, phase="Pending")))
    assert not store.put_child(project("Pod", pod("a", 5, phase="Running")))
    seen = store.child(Key("Pod", "lab", "a"))
    assert seen is not None
    assert seen.status == {"phase": "Running"}


def test_a_change_that_arrives_after_the_later_deletion_does_not_bring_the_object_back() -> None:
    store = Store()
    key = Key("Pod", "lab", "a")
    store.put_child(project("Pod", pod("a", 5)))
    assert store.remove(key, 9)
    assert not store.put_child(project("Pod", pod("a", 8)))
    assert store.child(key) is None
    assert store.put_child(project("Pod", pod("a", 10, uid="next")))


def test_a_deletion_that_arrives_after_the_name_was_used_again_leaves_the_new_object_alone() -> None:
    store = Store()
    store.put_child(project("Pod", pod("a", 12, uid="next")))
    assert not store.remove(Key("Pod", "lab", "a"), 9)
    assert store.child(Key("Pod", "lab", "a")) is not None


def test_a_list_removes_what_it_lacks_but_not_what_is_newer_than_the_list() -> None:
    store = Store()
    for name, version in (("kept", 5), ("gone", 6), ("newer", 20)):
        store.put_child(project("Pod", pod(name, version)))
    assert store.listed("Pod", [Key("Pod", "lab", "kept")], 10) == [Key("Pod", "lab", "gone")]
    assert {c.meta.name for c in store.every("Pod")} == {"kept", "newer"}


def test_after_history_went_back_lower_versions_are_news_again() -> None:
    store = Store()
    store.put_child(project("Pod", pod("a", 500, phase="Running")))
    store.remove(Key("Pod", "lab", "b"), 400)
    store.forget_versions("Pod")
    assert store.put_child(project("Pod", pod("a", 20, phase="Pending")))
    assert store.put_child(project("Pod", pod("b", 21)))


def test_what_was_seen_includes_deletions() -> None:
    store = Store()
    key = Key("Pod", "lab", "a")
    assert not store.has_seen(key, 1)
    store.put_child(project("Pod", pod("a", 5)))
    assert store.has_seen(key, 5)
    assert not store.has_seen(key, 6)
    store.remove(key, 7)
    assert store.has_seen(key, 6)


def test_children_are_found_by_owner_and_by_label_in_the_order_of_their_names() -> None:
    store = Store(labels=(LABEL,))
    store.put_child(project("Pod", pod("b", 1, owner="u1", label="bear")))
    store.put_child(project("Pod", pod("a", 2, owner="u1")))
    store.put_child(project("Pod", pod("c", 3, owner="u2", label="bear")))
    assert [c.meta.name for c in store.children("Pod", "lab", "u1")] == ["a", "b"]
    assert [c.meta.name for c in store.labelled("Pod", "lab", LABEL, "bear")] == ["b", "c"]
    assert store.children("Job", "lab", "u1") == []


def test_a_label_without_an_index_is_an_error_not_an_empty_answer() -> None:
    with pytest.raises(KeyError, match="no index of label other"):
        Store(labels=(LABEL,)).labelled("Pod", "lab", "other", "x")


def test_a_report_goes_with_its_pod() -> None:
    store = Store()
    store.put_child(project("Pod", pod("a", 5, uid="u")))
    store.put_report("u", {"step": 1}, 10.0)
    store.remove(Key("Pod", "lab", "a"), 6)
    assert store.report("u") is None


NAMES = ("a", "b")
HISTORY = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["put", "put", "delete"]), st.sampled_from(["u1", "u2", ""])),
    max_size=8,
)


@given(HISTORY, st.randoms(use_true_random=False))
def test_any_order_and_repetition_of_news_ends_in_the_same_picture(history: Any, random: Any) -> None:
    news = list(enumerate(history, start=1))
    truth: dict[str, tuple[int, str]] = {}
    for version, (name, verb, owner) in news:
        if verb == "put":
            truth[name] = (version, owner)
        else:
            truth.pop(name, None)
    shuffled = news * 2
    random.shuffle(shuffled)
    store = Store(labels=(LABEL,))
    for version, (name, verb, owner) in shuffled:
        if verb == "put":
            store.put_child(project("Pod", pod(name, version, owner=owner, label=owner)))
        else:
            store.remove(Key("Pod", "lab", name), version)
    assert {c.meta.name: (int(c.meta.resource_version), c.meta.owner_uid or "") for c in store.every("Pod")} == truth
    for owner in ("u1", "u2"):
        named = sorted(name for name, (_, of) in truth.items() if of == owner)
        assert [c.meta.name for c in store.children("Pod", "lab", owner)] == named
        assert [c.meta.name for c in store.labelled("Pod", "lab", LABEL, owner)] == named


def test_indexes_do_not_grow_with_objects_that_come_and_go() -> None:
    store = Store(labels=(LABEL,))
    for n in itertools.islice(itertools.count(1, 2), 50):
        store.put_child(project("Pod", pod(f"p{n}", n, owner=f"u{n}", label=f"l{n}")))
        store.remove(Key("Pod", "lab", f"p{n}"), n + 1)
    assert not store._owned
    assert not store._labelled

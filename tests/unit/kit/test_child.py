"""A projection keeps what planners read and drops the rest."""

from typing import Any

from kubeformer.kit.child import KEPT_SPEC, KEPT_STATUS, project


def body(**more: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "lab", "name": "a", "uid": "u", "resourceVersion": "7"}, **more}


def test_only_the_listed_fields_of_spec_and_status_stay() -> None:
    pod = project("Pod", body(spec={"nodeName": "n1", "containers": [{}]}, status={"phase": "Running"}))
    assert pod.spec == {"nodeName": "n1"}
    assert pod.status == {"phase": "Running"}
    node = project("Node", body(spec={"podCIDR": "x"}, status={"allocatable": {"cpu": "2"}, "images": [1, 2]}))
    assert node.spec == {}
    assert node.status == {"allocatable": {"cpu": "2"}}
    assert set(KEPT_STATUS) <= set(KEPT_SPEC)


def test_a_kind_without_an_entry_keeps_no_spec() -> None:
    assert project("PodDisruptionBudget", body(spec={"maxUnavailable": 1})).spec == {}


def test_data_stays_for_config_maps_alone() -> None:
    assert project("ConfigMap", body(data={"a": "1"})).data == {"a": "1"}
    assert project("Service", body(data={"a": "1"})).data == {}


def test_the_owner_is_the_controlling_one() -> None:
    owners = [
        {"kind": "Other", "name": "x", "uid": "1"},
        {"kind": "TrainingJob", "name": "spam", "uid": "2", "controller": True},
    ]
    metadata = {**body()["metadata"], "ownerReferences": owners}
    meta = project("Job", {"metadata": metadata}).meta
    assert (meta.owner_kind, meta.owner_name, meta.owner_uid) == ("TrainingJob", "spam", "2")
    assert project("Job", body()).meta.owner_uid is None


def test_what_is_left_out_of_metadata_is_empty() -> None:
    meta = project("Pod", body()).meta
    assert (meta.labels, meta.annotations, meta.generation, meta.deletion_timestamp) == ({}, {}, 0, None)

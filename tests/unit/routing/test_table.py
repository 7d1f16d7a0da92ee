"""The routing table says who answers to which model name."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kubeformer.contract.names import LABEL_MODEL_DEPLOYMENT
from kubeformer.routing.table import Endpoint, build


def deployment(
    name: str, namespace: str = "default", created: str = "2026-01-01T00:00:00Z", **more: Any
) -> dict[str, Any]:
    """A ModelDeployment as the API server stores it."""
    spec: dict[str, Any] = {"model": {"uri": "pvc://models/m"}}
    if "served" in more:
        spec["model"]["servedNames"] = more["served"]
    status = {"conditions": [more["ready"]]} if "ready" in more else {}
    meta = {"name": name, "namespace": namespace, "creationTimestamp": created}
    if more.get("deleting"):
        meta["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    return {"metadata": meta, "spec": spec, "status": status}


def endpoint_slice(name: str, *addresses: str, namespace: str = "default", ready: bool | None = True) -> dict[str, Any]:
    """An EndpointSlice of the deployment `name`."""
    conditions = {} if ready is None else {"ready": ready}
    return {
        "metadata": {"name": f"{name}-x", "namespace": namespace, "labels": {LABEL_MODEL_DEPLOYMENT: name}},
        "ports": [{"name": "http", "port": 8000}],
        "endpoints": [{"addresses": [address], "conditions": conditions} for address in addresses],
    }


def test_a_deployment_answers_to_its_own_name_unless_it_names_others() -> None:
    table = build([deployment("chat"), deployment("b", served=["assistant", "helper"])], [])
    assert [name for name, _ in table.served()] == ["assistant", "chat", "helper"]
    assert table.find("b") is None


def test_an_adapter_has_a_name_of_its_own_and_the_model_stays_first() -> None:
    body = deployment("chat", namespace="team")
    body["spec"]["model"]["adapters"] = [{"name": "legal", "uri": "pvc://models/legal"}]
    table = build([body], [])
    found = table.find("legal")
    assert found is not None
    assert found is table.find("team/chat")
    assert found.served_names == ("chat", "legal")  # team/chat is asked for as the first of them


def test_namespace_and_name_always_work() -> None:
    table = build([deployment("b", namespace="team", served=["assistant"])], [])
    assert table.find("team/b") is table.find("assistant")


def test_a_served_name_belongs_to_the_oldest_deployment_that_claims_it() -> None:
    young = deployment("young", created="2026-02-01T00:00:00Z", served=["chat"])
    old = deployment("old", created="2026-01-01T00:00:00Z", served=["chat"])
    target = build([young, old], []).find("chat")
    assert target is not None
    assert target.name == "old"


def test_only_ready_endpoints_are_listed_and_an_absent_condition_means_ready() -> None:
    slices = [
        endpoint_slice("m", "10.0.0.2"),
        endpoint_slice("m", "10.0.0.1", ready=None),
        endpoint_slice("m", "10.0.0.9", ready=False),
    ]
    target = build([deployment("m")], slices).find("m")
    assert target is not None
    assert target.endpoints == (Endpoint("10.0.0.1"), Endpoint("10.0.0.2"))


def test_endpoints_of_another_namespace_do_not_count() -> None:
    target = build([deployment("m")], [endpoint_slice("m", "10.0.0.1", namespace="other")]).find("m")
    assert target is not None
    assert target.endpoints == ()


def test_a_deployment_that_is_not_ready_says_why() -> None:
    condition = {"type": "Ready", "status": "False", "reason": "ModelNotReady", "message": "the job has not finished"}
    target = build([deployment("m", ready=condition)], []).find("m")
    assert target is not None
    assert target.reason == "ModelNotReady: the job has not finished"


def test_a_deployment_that_is_being_deleted_is_gone() -> None:
    assert build([deployment("m", deleting=True)], []).find("m") is None


names = st.sampled_from(["a", "b", "c"])
deployments = st.lists(
    st.builds(
        lambda name, namespace, day, served: deployment(name, namespace, f"2026-01-{day:02}T00:00:00Z", served=served),
        names,
        st.sampled_from(["x", "y"]),
        st.integers(1, 28),
        st.lists(names, min_size=1, max_size=3),
    ),
    max_size=6,
    unique_by=lambda d: (d["metadata"]["namespace"], d["metadata"]["name"]),
)


@given(deployments, st.randoms(use_true_random=False))
def test_the_order_of_what_the_watch_brings_does_not_matter(objects: list[dict[str, Any]], random: Any) -> None:
    shuffled = list(objects)
    random.shuffle(shuffled)
    assert build(objects, []) == build(shuffled, [])


@given(deployments)
def test_every_claimed_name_has_exactly_one_owner_and_it_claims_it(objects: list[dict[str, Any]]) -> None:
    table = build(objects, [])
    claimed = {name for d in objects for name in d["spec"]["model"]["servedNames"]}
    assert {name for name, _ in table.served()} == claimed
    assert all(name in target.served_names for name, target in table.served())

"""Native gang scheduling is on: pods of a PodGroup start together or not at all."""

from __future__ import annotations

from tests.cluster.kubectl import SLEEP, Kubectl, python_pod, wait_until


def scheduled(kubectl: Kubectl, pod: str) -> str:
    """The status of the condition PodScheduled; "" while the scheduler has not said anything."""
    conditions = kubectl.get("pod", pod)["status"].get("conditions", [])
    return next((condition["status"] for condition in conditions if condition["type"] == "PodScheduled"), "")


def test_a_gang_of_two_waits_for_its_second_member(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1beta1",
            "kind": "PodGroup",
            "metadata": {"name": "pair"},
            "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}},
        }
    )
    group = {"schedulingGroup": {"podGroupName": "pair"}}
    kubectl.apply(python_pod("one", image, SLEEP, **group))
    # A pod outside the gang, made later, runs: the scheduler had its turn, and one did not.
    kubectl.apply(python_pod("alone", image, SLEEP))
    kubectl.wait_ready("alone")
    assert scheduled(kubectl, "one") != "True"
    assert not kubectl.get("pod", "one")["spec"].get("nodeName")

    kubectl.apply(python_pod("two", image, SLEEP, **group))
    kubectl.wait_ready("one", "two")


def test_a_gang_that_cannot_be_whole_takes_no_room(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1beta1",
            "kind": "PodGroup",
            "metadata": {"name": "giants"},
            "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}},
        }
    )
    group = {"schedulingGroup": {"podGroupName": "giants"}}
    giant = python_pod("giant", image, SLEEP, **group)
    giant["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "1000", "memory": "16Mi"}}
    kubectl.apply(python_pod("small", image, SLEEP, **group), giant)
    wait_until(lambda: scheduled(kubectl, "giant") == "False", "the scheduler has found no room for the giant")
    assert not kubectl.get("pod", "small")["spec"].get("nodeName")

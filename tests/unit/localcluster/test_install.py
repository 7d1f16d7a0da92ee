"""What `install` hands to helm."""

from __future__ import annotations

from localcluster.install import NAMESPACE, UNFINISHED, forget_unfinished, helm_command, namespace, trouble, values
from localcluster.kube import Object


class Answers:
    """An API server that knows the answers to a few paths and remembers what was deleted."""

    def __init__(self, items: list[Object]) -> None:
        self.items = items
        self.asked = ""
        self.deleted: list[str] = []

    def get(self, path: str) -> Object:
        self.asked = path
        return {"items": self.items}

    def delete(self, path: str) -> None:
        self.deleted.append(path)


def test_helm_installs_or_upgrades_and_waits_and_a_persons_values_come_last() -> None:
    command = helm_command("/bin/helm", "/kubeconfig", ["a=1", "b=2"])
    assert command[:3] == ["/bin/helm", "upgrade", "kubeformer"]
    assert {"--install", "--wait"} <= set(command)
    assert command[-4:] == ["--set", "a=1", "--set", "b=2"]


def test_the_chart_gets_both_images_as_they_were_built() -> None:
    built = {"kubeformer-operator": "r/o:1", "kubeformer-runtime": "r/r:2"}
    assert values(built, gangs=True) == {"images": {"operator": "r/o:1", "runtime": "r/r:2"}, "gangs": True}
    assert values(built | {"kubeformer-vllm": "r/v:3"}, gangs=True)["images"]["vllm"] == "r/v:3"


def test_our_namespace_asks_for_restricted_pods() -> None:
    assert namespace()["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_only_records_of_unfinished_installations_are_deleted() -> None:
    api = Answers([{"metadata": {"name": "sh.helm.release.v1.kubeformer.v1"}}])
    forget_unfinished(api)  # type: ignore[arg-type]
    assert all(status in api.asked for status in UNFINISHED)
    assert "deployed" not in api.asked
    assert api.deleted == [f"/api/v1/namespaces/{NAMESPACE}/secrets/sh.helm.release.v1.kubeformer.v1"]


def test_trouble_says_which_pod_and_why() -> None:
    pods: list[Object] = [
        {
            "metadata": {"name": "operator-1"},
            "status": {
                "containerStatuses": [
                    {"ready": False, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
                ]
            },
        },
        {
            "metadata": {"name": "gateway-1"},
            "status": {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}
                ]
            },
        },
        {"metadata": {"name": "fine"}, "status": {"containerStatuses": [{"ready": True, "state": {"running": {}}}]}},
    ]
    said = trouble(Answers(pods))  # type: ignore[arg-type]
    assert said.splitlines() == ["operator-1: ImagePullBackOff not found", "gateway-1: Unschedulable 0/2 nodes"]

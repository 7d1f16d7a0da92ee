"""Volumes of the default StorageClass: shared by both nodes, writable without root, gone with their claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcluster.components import Cluster
from localcluster.kube import Object
from tests.cluster.kubectl import CommandFailed, Kubectl, python_pod, wait_until

WRITE = """
import os, pathlib
folder = pathlib.Path("/data/models")
folder.mkdir()
(folder / "from-first").write_text("hello")
"""

ANSWER = """
import pathlib, time
letter = pathlib.Path("/data/models/from-first")
while not letter.exists():
    time.sleep(0.1)
(letter.parent / "from-second").write_text(letter.read_text() + " to you")
print(sorted(path.name for path in letter.parent.iterdir()))
"""


def claim(name: str, **spec: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}, **spec},
    }


def gone(kubectl: Kubectl, kind: str, name: str) -> bool:
    try:
        kubectl.get(kind, name)
    except CommandFailed as error:
        return "NotFound" in str(error)
    return False


def test_pods_on_both_nodes_write_to_one_claim_without_root_and_its_data_goes_with_it(
    cluster: Cluster, kubectl: Kubectl, image: str, nodes: list[str]
) -> None:
    kubectl.apply(claim("shared"))
    kubectl.apply(
        python_pod("second", image, ANSWER, node=nodes[1], claims={"/data": "shared"}),
        python_pod("first", image, WRITE, node=nodes[0], claims={"/data": "shared"}),
    )
    kubectl.wait_for_phase("first", "Succeeded")
    kubectl.wait_for_phase("second", "Succeeded")
    assert kubectl.run("logs", "second").strip() == "['from-first', 'from-second']"

    volume = kubectl.get("persistentvolume", kubectl.get("persistentvolumeclaim", "shared")["spec"]["volumeName"])
    assert "nodeAffinity" not in volume["spec"]
    if cluster.engine == "local":
        folder = Path(volume["spec"]["hostPath"]["path"])
        assert (folder / "models" / "from-second").read_text() == "hello to you"

    kubectl.run("delete", "pod", "first", "second")
    kubectl.run("delete", "persistentvolumeclaim", "shared")
    wait_until(lambda: gone(kubectl, "persistentvolume", volume["metadata"]["name"]), "the volume is gone")
    if cluster.engine == "local":
        assert not folder.exists()


def test_two_claims_have_nothing_in_common(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(claim("mine"), claim("yours", accessModes=["ReadWriteOnce"]))
    code = "import os; open('/mine/file', 'w').close(); print(os.listdir('/mine'), os.listdir('/yours'))"
    kubectl.apply(python_pod("both", image, code, claims={"/mine": "mine", "/yours": "yours"}))
    kubectl.wait_for_phase("both", "Succeeded")
    assert kubectl.run("logs", "both").strip() == "['file'] []"


@pytest.mark.parametrize("field", [{"volumeMode": "Block"}, {"storageClassName": ""}])
def test_a_claim_that_the_class_is_not_for_stays_pending(kubectl: Kubectl, field: dict[str, str]) -> None:
    kubectl.apply(claim("odd", **field), claim("after"))
    # The claim that was made later is bound, so the earlier one was looked at.
    wait_until(lambda: kubectl.get("pvc", "after")["status"].get("phase") == "Bound", "the other claim is bound")
    assert kubectl.get("pvc", "odd")["status"]["phase"] == "Pending"
    kubectl.run("delete", "pvc", "odd", "after")

"""Volumes that both nodes can write: the default StorageClass `kubeformer-shared` and its provisioner.

Both nodes are on one machine, so a folder of it is shared storage: every claim becomes a folder in `<cache>/volumes`
and a PersistentVolume without node affinity, ReadWriteMany if asked. The folder is writable by everybody, because a pod
under Pod Security `restricted` is no root and the kubelet changes no owners of such volumes.

    python -m localcluster.volumes KUBECONFIG FOLDER      # the provisioner; `up` starts it
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from localcluster.addons.reconcile import run, tell
from localcluster.components import Cluster, Command, Component, Stage, python_command
from localcluster.kube import Api, ApiError, Object

STORAGE_CLASS = "kubeformer-shared"
PROVISIONER = "kubeformer.dev/shared"

CLAIMS = "/api/v1/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"


def storage_class() -> Object:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
        "allowVolumeExpansion": False,
    }


def folder_name(claim: Object) -> str:
    """The folder of a claim's data; the uid keeps a later claim of the same name apart."""
    metadata = claim["metadata"]
    return f"{metadata['namespace']}-{metadata['name']}-{metadata['uid']}"


def wanted(claim: Object, classes: dict[str, Object]) -> bool:
    """Whether a claim waits for a volume of ours. One with a selector wants a volume that somebody made by hand."""
    spec = claim["spec"]
    return (
        spec.get("storageClassName") in classes
        and not spec.get("volumeName")
        and not spec.get("selector")
        and claim.get("status", {}).get("phase", "Pending") == "Pending"
        and "deletionTimestamp" not in claim["metadata"]
    )


def volume_for(claim: Object, reclaim: str, data: Path) -> Object:
    """The PersistentVolume of a claim: no node affinity, bound to this claim alone."""
    metadata = claim["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": f"pvc-{metadata['uid']}",
            "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
        },
        "spec": {
            "storageClassName": claim["spec"]["storageClassName"],
            "accessModes": claim["spec"]["accessModes"],
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "persistentVolumeReclaimPolicy": reclaim,
            "volumeMode": "Filesystem",
            "hostPath": {"path": str(data / folder_name(claim)), "type": "Directory"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }


def finished(volume: Object) -> bool:
    """Whether a volume of ours is done with, its data included."""
    ours: bool = volume["metadata"].get("annotations", {}).get("pv.kubernetes.io/provisioned-by") == PROVISIONER
    return (
        ours
        and volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
        and volume.get("status", {}).get("phase") == "Released"
    )


def look(api: Api, data: Path) -> None:
    """Gives every waiting claim its volume, and deletes what belongs to none any more."""
    classes = {
        entry["metadata"]["name"]: entry
        for entry in api.get("/apis/storage.k8s.io/v1/storageclasses")["items"]
        if entry["provisioner"] == PROVISIONER
    }
    for claim in api.get(CLAIMS)["items"]:
        if not wanted(claim, classes):
            continue
        name = f"{claim['metadata']['namespace']}/{claim['metadata']['name']}"
        if claim["spec"].get("volumeMode") == "Block":
            tell(f"{name} asks for a block device, and {STORAGE_CLASS} has only file systems")
            continue
        folder = data / folder_name(claim)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        reclaim = classes[claim["spec"]["storageClassName"]].get("reclaimPolicy", "Delete")
        try:
            api.request("POST", VOLUMES, volume_for(claim, reclaim, data))
            tell(f"made a volume for {name}")
        except ApiError as error:
            if error.code != 409:  # it is there, and only the binding takes a moment
                raise
    for volume in api.get(VOLUMES)["items"]:
        if finished(volume):
            # The folder is named by us alone: a path that somebody wrote into a volume by hand is never followed.
            folder = data / Path(volume["spec"].get("hostPath", {}).get("path", "/")).name
            if folder.parent == data and folder.name.endswith(volume["metadata"]["name"].removeprefix("pvc-")):
                shutil.rmtree(folder, ignore_errors=True)
            api.delete(f"{VOLUMES}/{volume['metadata']['name']}")
            tell(f"deleted {volume['metadata']['name']}")


class Provisioner(Component):
    """The process that makes and deletes volumes."""

    name = "volumes"
    stage = Stage.CONTROL
    engines = ("local", "kind")

    def command(self, cluster: Cluster) -> Command:
        # kind's nodes see the folder under the same path as this machine.
        return python_command("localcluster.volumes", str(cluster.kubeconfig), str(cluster.layout.volumes))

    def prepare(self, cluster: Cluster) -> None:
        cluster.layout.volumes.mkdir(parents=True, exist_ok=True)

    def purge(self, cluster: Cluster) -> None:
        shutil.rmtree(cluster.layout.volumes, ignore_errors=True)


def settled(cluster: Cluster) -> None:
    """Makes the StorageClass, and the only default one."""
    if cluster.engine == "current":
        return
    api = cluster.api()
    api.apply(storage_class())
    key = "storageclass.kubernetes.io/is-default-class"
    for entry in api.get("/apis/storage.k8s.io/v1/storageclasses")["items"]:
        name = entry["metadata"]["name"]
        if name != STORAGE_CLASS and entry["metadata"].get("annotations", {}).get(key) == "true":
            api.patch(f"/apis/storage.k8s.io/v1/storageclasses/{name}", {"metadata": {"annotations": {key: "false"}}})


COMPONENTS: tuple[Component, ...] = (Provisioner(),)


def main(kubeconfig: str, data: str) -> None:
    run(Api.from_kubeconfig(Path(kubeconfig)), (CLAIMS, VOLUMES), lambda api: look(api, Path(data)))


if __name__ == "__main__":
    main(*sys.argv[1:])

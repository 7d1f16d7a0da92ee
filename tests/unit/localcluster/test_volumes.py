"""Which claims get a volume, what the volume looks like, and which volumes go with their data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localcluster.kube import ApiError, object_path
from localcluster.volumes import CLAIMS, PROVISIONER, STORAGE_CLASS, VOLUMES, folder_name, look, storage_class

Object = dict[str, Any]
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"


class World:
    """An API server of three lists, for this module alone; tests on the real one are in tests/cluster."""

    def __init__(self, *claims: Object, classes: tuple[Object, ...] = (storage_class(),)) -> None:
        self.lists: dict[str, list[Object]] = {CLASSES: list(classes), CLAIMS: list(claims), VOLUMES: []}

    def get(self, path: str) -> Object:
        return {"items": self.lists[path]}

    def request(self, method: str, path: str, body: Object) -> Object:
        assert (method, path) == ("POST", VOLUMES)
        if any(volume["metadata"]["name"] == body["metadata"]["name"] for volume in self.lists[VOLUMES]):
            raise ApiError(409, "AlreadyExists", "it is there")
        self.lists[VOLUMES].append(body)
        return body

    def delete(self, path: str) -> None:
        self.lists[VOLUMES] = [volume for volume in self.lists[VOLUMES] if object_path(volume) != path]


def claim(name: str = "data", **spec: Any) -> Object:
    return {
        "metadata": {"namespace": "here", "name": name, "uid": f"uid-of-{name}"},
        "spec": {
            "storageClassName": STORAGE_CLASS,
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "5Gi"}},
            **spec,
        },
        "status": {"phase": "Pending"},
    }


def test_a_claim_gets_a_folder_that_everybody_may_write_and_a_volume_for_it_alone(tmp_path: Path) -> None:
    world = World(claim())
    look(world, tmp_path)  # type: ignore[arg-type]
    look(world, tmp_path)  # type: ignore[arg-type]
    (volume,) = world.lists[VOLUMES]
    folder = tmp_path / folder_name(claim())
    assert folder.stat().st_mode & 0o777 == 0o777
    assert volume["spec"]["hostPath"]["path"] == str(folder)
    assert volume["spec"]["claimRef"]["uid"] == "uid-of-data"
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volume["spec"]["capacity"] == {"storage": "5Gi"}
    assert "nodeAffinity" not in volume["spec"]


@pytest.mark.parametrize(
    "spec",
    [
        {"storageClassName": "another"},
        {"storageClassName": ""},
        {"volumeName": "made-by-hand"},
        {"selector": {"matchLabels": {"a": "b"}}},
        {"volumeMode": "Block"},
    ],
)
def test_a_claim_for_something_else_is_left_alone(tmp_path: Path, spec: Object) -> None:
    world = World(claim(**spec))
    look(world, tmp_path)  # type: ignore[arg-type]
    assert not world.lists[VOLUMES]
    assert not list(tmp_path.iterdir())


def test_other_classes_of_the_provisioner_decide_what_stays(tmp_path: Path) -> None:
    keeps = {**storage_class(), "metadata": {"name": "keeps"}, "reclaimPolicy": "Retain"}
    world = World(claim(storageClassName="keeps"), classes=(keeps,))
    look(world, tmp_path)  # type: ignore[arg-type]
    world.lists[CLAIMS] = []
    world.lists[VOLUMES][0]["status"] = {"phase": "Released"}
    look(world, tmp_path)  # type: ignore[arg-type]
    assert len(world.lists[VOLUMES]) == 1
    assert (tmp_path / folder_name(claim())).is_dir()


def test_a_released_volume_goes_with_its_data(tmp_path: Path) -> None:
    world = World(claim())
    look(world, tmp_path)  # type: ignore[arg-type]
    (tmp_path / folder_name(claim()) / "model").write_text("weights")
    world.lists[CLAIMS] = []
    world.lists[VOLUMES][0]["status"] = {"phase": "Released"}
    look(world, tmp_path)  # type: ignore[arg-type]
    assert not world.lists[VOLUMES]
    assert not list(tmp_path.iterdir())


def test_a_volume_that_points_elsewhere_never_takes_another_folder_with_it(tmp_path: Path) -> None:
    data = tmp_path / "volumes"
    other = data / "here-precious-uid-of-precious"
    other.mkdir(parents=True)
    forged = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "pvc-uid-of-mine", "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {"persistentVolumeReclaimPolicy": "Delete", "hostPath": {"path": str(other)}},
        "status": {"phase": "Released"},
    }
    world = World()
    world.lists[VOLUMES] = [forged]
    look(world, data)  # type: ignore[arg-type]
    assert other.is_dir()
    assert not world.lists[VOLUMES]

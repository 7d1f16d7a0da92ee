"""Ending a cluster: what is found, in which order it goes, and what is left alone."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster import teardown
from localcluster.components import Cluster, Command, Component, Stage
from localcluster.errors import ClusterError
from localcluster.processes import processes_of, start_time
from localcluster.teardown import dead_sockets, mount_points
from tests.unit.localcluster.builders import cluster_in

MOUNTINFO = """\
22 1 0:20 / /proc rw - proc proc rw
30 1 8:1 / /cache/cluster/node-1/kubelet/pods/a/volumes/x rw - tmpfs tmpfs rw
31 30 8:1 / /cache/cluster/node-1/kubelet/pods/a/volumes/x/with\\040space rw - tmpfs tmpfs rw
32 1 8:1 / /cache/cluster-of-another rw - tmpfs tmpfs rw
"""


def test_mounts_below_the_folder_come_innermost_first_and_others_not_at_all() -> None:
    root = "/cache/cluster/node-1/kubelet/pods/a/volumes/x"
    assert mount_points(MOUNTINFO, Path("/cache/cluster")) == [f"{root}/with space", root]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def test_only_sockets_without_a_listener_are_dead(short_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as dead:
        alive.bind(str(short_folder / "alive"))
        alive.listen()
        dead.bind(str(short_folder / "dead"))
        (short_folder / "file").write_text("")
        assert short_folder / "dead" in dead_sockets(short_folder)
        assert short_folder / "alive" not in dead_sockets(short_folder)


class Sleeper(Component):
    """A component that writes into a list what happens to it."""

    def __init__(self, name: str, stage: Stage, events: list[str]) -> None:
        self.name, self.stage, self.events = name, stage, events

    def command(self, cluster: Cluster) -> Command:
        return Command(("sleep", "1000", self.name))

    def clean(self, cluster: Cluster) -> None:
        self.events.append(f"clean {self.name}")

    def purge(self, cluster: Cluster) -> None:
        self.events.append(f"purge {self.name}")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cgroups, devices or tables of a cluster that may be running on this machine."""
    monkeypatch.setattr(teardown.cgroups, "hierarchies", lambda: ())
    monkeypatch.setattr(teardown, "links", list)
    monkeypatch.setattr(teardown, "tables", list)
    monkeypatch.setattr(teardown, "remove_leftovers", lambda layout: None)
    monkeypatch.setattr(teardown, "other_clusters", lambda cluster: [])


def test_tearing_down_ends_recorded_and_unrecorded_processes(tmp_path: Path, alone: None) -> None:
    cluster = cluster_in(tmp_path)
    events: list[str] = []
    etcd = Sleeper("etcd", Stage.STORE, events)
    processes = processes_of(cluster.layout)
    recorded = processes.start("etcd", Command(("sleep", "1000")))
    unrecorded = processes.start("lost", Command(("sleep", "1001")))
    (processes.records / "lost.json").unlink()
    teardown.tear_down(cluster, [etcd])
    assert start_time(recorded.pid) != recorded.start
    assert start_time(unrecorded.pid) != unrecorded.start
    assert events == ["clean etcd"]
    assert processes.names() == []


def test_tearing_down_twice_is_harmless(tmp_path: Path, alone: None) -> None:
    cluster = cluster_in(tmp_path)
    for _ in range(2):
        teardown.tear_down(cluster, [Sleeper("etcd", Stage.STORE, [])])


def test_the_api_server_ends_before_etcd_and_the_runtimes_last(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(teardown.Processes, "stop", lambda self, name, seconds: order.append(name))
    names = {"etcd": 0, "containerd-1": 0, "kube-apiserver": 1, "kubelet-1": 2, "kube-scheduler": 2, "volumes": 3}
    components = [Sleeper(name, Stage(stage), []) for name, stage in names.items()]
    teardown.tear_down(cluster_in(tmp_path), components)
    assert order == ["supervisor", "kubelet-1", "volumes", "kube-scheduler", "kube-apiserver", "etcd", "containerd-1"]


def test_the_devices_and_containers_of_another_running_cluster_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teardown, "other_clusters", lambda cluster: ["/elsewhere/cluster"])
    cluster = cluster_in(tmp_path)
    events: list[str] = []
    record = processes_of(cluster.layout).start("etcd", Command(("sleep", "1000")))
    teardown.tear_down(cluster, [Sleeper("etcd", Stage.STORE, events)])
    assert start_time(record.pid) != record.start
    assert events == [], "nothing is cleaned: names of devices are the same in all clusters"


def test_what_could_not_be_removed_is_named(tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "links", lambda: [{"ifname": "kf-node-2", "addr_info": []}])
    with pytest.raises(ClusterError, match="device kf-node-2"):
        teardown.tear_down(cluster_in(tmp_path), [])


def test_purging_deletes_everything_but_the_binaries(tmp_path: Path) -> None:
    cluster = cluster_in(tmp_path)
    layout, events = cluster.layout, list[str]()
    for folder in (layout.binaries, layout.etcd, layout.volumes, layout.registry):
        folder.mkdir(parents=True)
    teardown.purge(cluster, [Sleeper("etcd", Stage.STORE, events)])
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    assert events == ["purge etcd"]


def test_nothing_is_deleted_while_something_is_mounted_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_in(tmp_path)
    cluster.layout.etcd.mkdir(parents=True)
    monkeypatch.setattr(teardown, "mount_points", lambda text, below: [f"{below}/node-1/x"])
    with pytest.raises(ClusterError, match="mounted"):
        teardown.purge(cluster, [])
    assert cluster.layout.etcd.exists()


def test_forgetting_objects_keeps_images_and_keys(tmp_path: Path) -> None:
    cluster = cluster_in(tmp_path)
    layout = cluster.layout
    node = layout.nodes[0]
    for folder in (layout.etcd, layout.volumes, node.kubelet_root, node.containerd_root, layout.registry):
        folder.mkdir(parents=True)
    teardown.forget(cluster)
    assert not any(folder.exists() for folder in (layout.etcd, layout.volumes, node.kubelet_root))
    assert node.containerd_root.exists()
    assert layout.registry.exists()

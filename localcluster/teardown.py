"""Ends everything of a cluster, whatever state it is in, and leaves nothing in the kernel behind.

It trusts no record alone. Processes are found by their records, by the mark in their environment (also the containers'
shims, which inherit it from containerd), and by the nodes' cgroups (whatever runs in containers). Then mounts below
the cluster's folder, network devices, nftables tables and cgroups go. Every step is harmless when there is nothing to
do, so it may be interrupted and run again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from localcluster import cgroups
from localcluster.components import Cluster, Component
from localcluster.errors import ClusterError
from localcluster.layout import Layout
from localcluster.network import TABLE, addresses, links, tables
from localcluster.processes import (
    Processes,
    end_all,
    other_clusters,
    processes_of,
    signal_process,
    start_time,
    wait_gone,
)

CONTAINER_GRACE_SECONDS = 3.0


def mount_points(mountinfo: str, below: Path) -> list[str]:
    """The mount points at or below a folder, the last mounted first: the order of unmounting."""
    found = []
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) > 4:
            point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            if Path(point).is_relative_to(below):
                found.append(point)
    return found[::-1]


def unmount_all(below: Path, seconds: float = 5.0) -> list[str]:
    """Unmounts everything below a folder; what stays busy is detached. Returns what could not even be detached."""
    deadline = time.monotonic() + seconds
    while True:
        points = mount_points(Path("/proc/self/mountinfo").read_text(), below)
        if not points:
            return []
        late = time.monotonic() > deadline
        for point in points:
            subprocess.run(["umount", *(["-l"] if late else []), point], capture_output=True, check=False)
        if late:
            return mount_points(Path("/proc/self/mountinfo").read_text(), below)
        time.sleep(0.05)


def container_processes(layout: Layout) -> list[tuple[int, int]]:
    """(pid, start time) of all processes in the nodes' cgroups."""
    trees = cgroups.hierarchies()
    found = []
    for node in layout.nodes:
        for pid in cgroups.processes(node.cgroup, trees):
            start = start_time(pid)
            if start is not None:
                found.append((pid, start))
    return found


def end_containers(layout: Layout) -> None:
    """Ends what runs in containers: SIGTERM, a few seconds, SIGKILL. The kubelets have to be gone."""
    trees = cgroups.hierarchies()
    for node in layout.nodes:
        cgroups.thaw(node.cgroup, trees)
    running = container_processes(layout)
    for pid, start in running:
        if not is_pause(pid):
            signal_process(pid, start, signal.SIGTERM)
    wait_gone([entry for entry in running if not is_pause(entry[0])], CONTAINER_GRACE_SECONDS)
    # A container may be starting a process while we look; until none is seen.
    for _ in range(50):
        left = container_processes(layout)
        if not left:
            return
        for pid, start in left:
            signal_process(pid, start, signal.SIGKILL)
        wait_gone(left, 2)


def is_pause(pid: int) -> bool:
    """Whether this is a pod's pause process, which holds the network that the others still use."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b"/pause\0"
    return False


def dead_sockets(folder: Path) -> list[Path]:
    """Sockets that nobody listens on. containerd keeps those of its containers' shims in /run/containerd/s, whatever
    folder its state is in, and names them by a digest; so ours are known by being dead, as all our shims are by
    now."""
    found = []
    for path in folder.glob("*"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                found.append(path)
    return found


def remove_leftovers(layout: Layout) -> None:
    """Removes files outside the cache that the runtime and the kubelets leave: sockets, links to logs, CNI results."""
    for node in layout.nodes:
        sandboxes = {path.name for path in node.containerd_root.glob("io.containerd.grpc.v1.cri/sandboxes/*")}
        for result in Path("/var/lib/cni/results").glob("*"):
            ours = result.name.startswith(f"kubeformer-{node.name}-") or sandboxes & set(result.name.split("-"))
            if ours:
                result.unlink(missing_ok=True)
    for path in dead_sockets(Path("/run/containerd/s")):
        path.unlink(missing_ok=True)
    for link in Path("/var/log/containers").glob("*.log"):
        with contextlib.suppress(OSError):
            if link.is_symlink() and Path(os.readlink(link)).is_relative_to(layout.cluster):
                link.unlink()
    # Where every kubelet puts its socket for device plugins; a kubelet of somebody else keeps more than that here.
    with contextlib.suppress(OSError):
        if os.listdir("/var/lib/kubelet") == ["device-plugins"]:
            shutil.rmtree("/var/lib/kubelet")
    for folder in (
        "/run/containerd/s",
        "/run/containerd",
        "/var/lib/cni/results",
        "/var/lib/cni",
        "/var/log/containers",
    ):
        with contextlib.suppress(OSError):
            os.rmdir(folder)  # only if empty


def stop_components(cluster: Cluster, components: Sequence[Component], processes: Processes) -> None:
    """Stops the recorded processes in the order in which they were given."""
    for component in components:
        processes.stop(component.name, component.stop_seconds)


def tear_down(cluster: Cluster, components: Iterable[Component]) -> None:
    """Ends the cluster; its data stays.

    Raises:
        ClusterError: if something could not be removed, naming it.
    """
    layout, report = cluster.layout, cluster.report
    processes = processes_of(layout)
    others = other_clusters(layout.cluster)
    if others:
        report.say(
            f"         the cluster of {Path(others[0]).parent} runs; its devices, rules and containers are left alone"
        )
        with report.step("stopped the processes of this one"):
            for name in ["supervisor", *processes.names()]:
                processes.stop(name, 5)
            end_all(processes.marked(), 1)
            processes.forget()
            unmount_all(layout.cluster)
        return
    backwards = sorted(components, key=lambda component: -component.stage)
    by_name = {component.name: component for component in backwards}
    runtimes = [component for component in backwards if component.name.startswith("containerd-")]
    kubelets = [component for component in backwards if component.name.startswith("kubelet-")]
    # The API server before etcd, or it hangs on its watches; containerd after the containers.
    last = ["kube-apiserver", "etcd"]
    first = [
        component for component in backwards if component not in (*runtimes, *kubelets) and component.name not in last
    ]

    with report.step("stopped the supervisor and the nodes' agents"):
        processes.stop("supervisor", 5)
        stop_components(cluster, kubelets, processes)
    with report.step("ended the containers"):
        end_containers(layout)
    with report.step("stopped the control plane and the runtimes"):
        for component in [*first, *(by_name[name] for name in last if name in by_name), *runtimes]:
            processes.stop(component.name, component.stop_seconds)
        for name in processes.names():
            processes.stop(name, 5)
        # Shims, and whatever was started but never recorded. A shim ends by SIGKILL only.
        for _ in range(5):
            left = processes.marked()
            if not left:
                break
            end_all(left, 0.2)
        end_containers(layout)
        processes.forget()
    with report.step("removed mounts, devices, rules and control groups"):
        remove_leftovers(layout)
        unmount_all(layout.cluster)
        for node in layout.nodes:
            shutil.rmtree(node.containerd_state, ignore_errors=True)
        for component in backwards:
            component.clean(cluster)
        trees = cgroups.hierarchies()
        for node in layout.nodes:
            cgroups.remove(node.cgroup, trees)
        remaining = leftovers(layout)
    if remaining:
        raise ClusterError(f"Still there: {', '.join(remaining)}; something uses it. End that and run `down` again.")


def leftovers(layout: Layout) -> list[str]:
    """What of the cluster is still in the kernel, each in a few words; empty after a good `down`."""
    processes = processes_of(layout)
    found = [f"process {pid}" for pid, _ in {*processes.marked(), *container_processes(layout)}]
    found += [f"mount {point}" for point in mount_points(Path("/proc/self/mountinfo").read_text(), layout.cluster)]
    bridges, gateways = {node.bridge for node in layout.nodes}, {node.address for node in layout.nodes}
    found += [
        f"device {link['ifname']}" for link in links() if link["ifname"] in bridges or gateways & set(addresses(link))
    ]
    found += [f"nftables table {family} {name}" for family, name in tables() if name.startswith((TABLE, "kube-proxy"))]
    groups = {node.cgroup.lstrip("/") for node in layout.nodes}
    found += [
        f"cgroup {tree.path / group}"
        for tree in cgroups.hierarchies()
        for group in groups
        if (tree.path / group).exists()
    ]
    return found


def purge(cluster: Cluster, components: Iterable[Component]) -> None:
    """Deletes all data of a cluster that was torn down; binaries stay."""
    layout = cluster.layout
    if mount_points(Path("/proc/self/mountinfo").read_text(), layout.cluster):
        raise ClusterError(f"Something is mounted below {layout.cluster}; it is not deleted. Run `down` first.")
    with cluster.report.step("deleted objects, images, volumes and keys"):
        for component in components:
            component.purge(cluster)
        for folder in (layout.cluster, layout.volumes, layout.registry):
            shutil.rmtree(folder, ignore_errors=True)


def forget(cluster: Cluster) -> None:
    """Deletes the objects and volumes of a cluster that was torn down; images, keys and binaries stay."""
    layout = cluster.layout
    with cluster.report.step("deleted objects and volumes"):
        for folder in (layout.etcd, layout.volumes, *(node.kubelet_root for node in layout.nodes)):
            shutil.rmtree(folder, ignore_errors=True)

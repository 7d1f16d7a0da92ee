"""What has to be true before a cluster starts; each check that fails is one sentence that says what to do."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from localcluster import layout as places
from localcluster.binaries import PARTS, folder_of
from localcluster.components import Cluster
from localcluster.errors import ClusterError
from localcluster.processes import Processes, other_clusters, pids

GIB = 1024**3
RUN_BYTES = 3 * GIB
BUILD_BYTES = 20 * GIB
NEEDED_PARTS = ("kubernetes", "etcd", "coredns")


def require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("The local cluster makes network devices and mounts, so it needs root; run it with sudo -E.")


def require_alone(cluster: Cluster) -> None:
    """Raises ClusterError if the cluster of another cache runs on this machine."""
    for other in other_clusters(cluster.layout.cluster):
        cache = Path(other).parent
        raise ClusterError(
            f"The cluster of {cache} runs on this machine, and there can be one; "
            f"end it with `{places.CACHE_VARIABLE}={cache} python -m localcluster down`."
        )


def require_disk(cluster: Cluster, parts: tuple[str, ...] = NEEDED_PARTS) -> None:
    """Enough space: 3 GB to run, 20 GB more when Kubernetes may have to be built (Go's caches take most of it)."""
    build = not all(folder_of(PARTS[name], cluster.layout.binaries).exists() for name in parts)
    require_free(cluster.layout.cache, BUILD_BYTES if build else RUN_BYTES)


def require_free(folder: Path, needed: int) -> None:
    """Raises ClusterError unless the disk of a folder has so many bytes free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ClusterError(
            f"The disk of {folder} has {free / GIB:.1f} GB free and {needed / GIB:.0f} GB are needed; "
            f"free some, or set {places.CACHE_VARIABLE} to a folder on a larger disk."
        )


def ports(cluster: Cluster) -> tuple[tuple[str, int, str], ...]:
    """(component, port, address) of all ports that the core of the cluster listens on."""
    return (
        ("etcd", places.ETCD_PORT, "127.0.0.1"),
        ("etcd", places.ETCD_PEER_PORT, "127.0.0.1"),
        ("kube-apiserver", places.API_PORT, cluster.layout.nodes[0].address),
        ("kube-controller-manager", places.CONTROLLER_MANAGER_PORT, "127.0.0.1"),
        ("kube-scheduler", places.SCHEDULER_PORT, "127.0.0.1"),
        ("kube-proxy", places.KUBE_PROXY_HEALTH_PORT, "127.0.0.1"),
        ("kube-proxy", places.KUBE_PROXY_METRICS_PORT, "127.0.0.1"),
        *(
            (f"kubelet-{number + 1}", port, node.address)
            for number, node in enumerate(cluster.layout.nodes)
            for port in (places.KUBELET_PORT, places.KUBELET_HEALTH_PORT)
        ),
    )


def require_ports(cluster: Cluster, processes: Processes) -> None:
    """Raises ClusterError if a port of a component that does not run is taken, naming who has it."""
    ours = {pid for pid, _ in processes.marked()}
    for component, port, address in ports(cluster):
        if processes.alive(component) or not taken(port, address):
            continue
        holder = holder_of(port)
        if holder in ours:
            continue  # left by an interrupted start; it is replaced
        who = f"process {holder} ({_name(holder)})" if holder else "another process"
        raise ClusterError(f"Port {port}, which {component} needs, is taken by {who}; end it and try again.")


def taken(port: int, address: str) -> bool:
    """Whether something listens on the port at an address, or at all of them."""
    for target in (address, "0.0.0.0"):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((target, port))
            except OSError as error:
                # An address that is not there yet is held by nobody.
                if error.errno == 98:
                    return target == address or listens_everywhere(port)
    return False


def listens_everywhere(port: int) -> bool:
    return any(inode for address, found, inode in listeners() if found == port and set(address) <= {"0"})


def listeners() -> list[tuple[str, int, str]]:
    """(hexadecimal address, port, inode) of all listening TCP sockets of this network namespace."""
    found = []
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(file).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A":
                address, _, port = fields[1].partition(":")
                found.append((address, int(port, 16), fields[9]))
    return found


def holder_of(port: int) -> int:
    """The process that listens on a port, or 0 if it is not seen."""
    inodes = {f"socket:[{inode}]" for _, found, inode in listeners() if found == port}
    for pid in pids():
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{name}") in inodes:
                    return pid
        except OSError:
            continue
    return 0


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"

"""Where everything of the local cluster lives: folders, addresses, ports and names. Pure.

Everything that the cluster makes is under one folder, `$KUBEFORMER_CACHE` (default `~/.cache/kubeformer`):

    bin/<name>-<version>-<pins>/  binaries; the only thing that `down --purge` keeps
    cluster/                      the state of the cluster: keys, etcd, nodes, logs, process records
    volumes/                      the data of ReadWriteMany volumes
    registry/                     the data of the image registry
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localcluster.errors import ClusterError

CACHE_VARIABLE = "KUBEFORMER_CACHE"

LONGEST_CACHE_PATH = 55
"""A Unix socket's path holds 107 bytes; the longest one below the cache,
`/cluster/node-1/kubelet/pod-resources/kubelet.sock`, takes 51."""

POD_RANGE = "10.244.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_SERVICE_ADDRESS = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"

API_PORT = 6443
ETCD_PORT = 2379
ETCD_PEER_PORT = 2380
CONTROLLER_MANAGER_PORT = 10257
SCHEDULER_PORT = 10259
KUBELET_PORT = 10250
KUBELET_HEALTH_PORT = 10248
KUBE_PROXY_HEALTH_PORT = 10256
KUBE_PROXY_METRICS_PORT = 10249
REGISTRY_PORT = 5001


@dataclass(frozen=True, slots=True)
class Node:
    """One node: a containerd and a kubelet of its own, with a bridge that holds its address.

    Pods get addresses from `pod_range`; the node's own address is the first of it.
    """

    name: str
    address: str
    pod_range: str
    folder: Path

    @property
    def bridge(self) -> str:
        """The network device that holds the node's address (15 bytes at most)."""
        return f"kf-{self.name}"

    @property
    def cgroup(self) -> str:
        """The cgroup, in every hierarchy, below which all pods of this node run. Nobody else's processes are in it."""
        return f"/kubeformer-{self.name}"

    @property
    def containerd_socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def containerd_state(self) -> Path:
        return self.folder / "run"

    @property
    def containerd_root(self) -> Path:
        return self.folder / "images"

    @property
    def kubelet_root(self) -> Path:
        return self.folder / "kubelet"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubelet.kubeconfig"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one cache folder."""

    cache: Path

    @property
    def binaries(self) -> Path:
        return self.cache / "bin"

    @property
    def cluster(self) -> Path:
        return self.cache / "cluster"

    @property
    def logs(self) -> Path:
        return self.cluster / "logs"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def records(self) -> Path:
        """One JSON file for every process that was started."""
        return self.cluster / "processes"

    @property
    def config(self) -> Path:
        """Configuration files of the control plane."""
        return self.cluster / "config"

    @property
    def keys(self) -> Path:
        return self.cluster / "keys"

    @property
    def etcd(self) -> Path:
        return self.cluster / "etcd"

    @property
    def kubeconfig(self) -> Path:
        return self.cluster / "kubeconfig"

    @property
    def volumes(self) -> Path:
        return self.cache / "volumes"

    @property
    def registry(self) -> Path:
        return self.cache / "registry"

    @property
    def lock(self) -> Path:
        """Held by `up` and `down`, so that two of them never run at once."""
        return self.cache / "lock"

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(
            Node(
                f"node-{number + 1}", f"10.244.{number}.1", f"10.244.{number}.0/24", self.cluster / f"node-{number + 1}"
            )
            for number in range(2)
        )

    @property
    def api_url(self) -> str:
        """The API server listens on node-1's bridge alone: this machine and pods reach it, nobody outside does."""
        return f"https://{self.nodes[0].address}:{API_PORT}"


def layout_from(environment: Mapping[str, str], home: Path) -> Layout:
    """Reads the cache folder's place from the environment.

    Raises:
        ClusterError: if the path is relative or too long.
    """
    given = environment.get(CACHE_VARIABLE, "")
    cache = Path(given) if given else home / ".cache" / "kubeformer"
    if not cache.is_absolute():
        raise ClusterError(f"{CACHE_VARIABLE} is {given!r}, a relative path; set it to an absolute one.")
    length = len(str(cache).encode())
    if length > LONGEST_CACHE_PATH:
        raise ClusterError(
            f"The cache folder {cache} has {length} characters, and Unix sockets below it allow {LONGEST_CACHE_PATH}; "
            f"set {CACHE_VARIABLE} to a shorter path, such as /var/tmp/kubeformer."
        )
    return Layout(cache)

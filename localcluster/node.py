"""The two nodes, a containerd and a kubelet each, and kube-proxy, one for the machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from localcluster import cgroups, pki
from localcluster import layout as places
from localcluster.base_images import PAUSE_IMAGE
from localcluster.binaries import program
from localcluster.components import Cluster, Command, Component, Stage
from localcluster.controlplane import healthy, listening
from localcluster.layout import Node
from localcluster.processes import processes_of, started_at

CNI_PROGRAMS = "/usr/lib/cni"
CNI_VERSION = "1.0.0"


def containerd_config(node: Node) -> str:
    """containerd's configuration: everything in the node's folder, images of the local registry over plain HTTP."""
    return f"""version = 2
root = "{node.containerd_root}"
state = "{node.containerd_state}"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{node.containerd_socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
enable_unprivileged_ports = true
max_concurrent_downloads = 3

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
discard_unpacked_layers = true

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
Root = "{node.containerd_state / "runc"}"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PROGRAMS}"
conf_dir = "{node.folder / "cni"}"

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{node.folder / "certs.d"}"
"""


def cni_config(node: Node) -> dict[str, Any]:
    """How pods are attached: a veth pair and a route each (see network.py)."""
    return {
        "cniVersion": CNI_VERSION,
        "name": f"kubeformer-{node.name}",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": node.pod_range, "gateway": node.address}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": str(node.folder / "addresses"),
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        ],
    }


def registry_hosts(host: str) -> str:
    """containerd's hosts.toml: where images of this host come from."""
    return f"""server = "http://{host}"

[host."http://127.0.0.1:{places.REGISTRY_PORT}"]
capabilities = ["pull", "resolve"]
"""


class Containerd(Component):
    """The container runtime of one node."""

    stage = Stage.STORE

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"containerd-{number + 1}"

    def node(self, cluster: Cluster) -> Node:
        return cluster.layout.nodes[self.number]

    def prepare(self, cluster: Cluster) -> None:
        node = self.node(cluster)
        (node.folder / "cni").mkdir(parents=True, exist_ok=True)
        (node.folder / "containerd.toml").write_text(containerd_config(node))
        pki.write_private(node.folder / "cni" / "10-kubeformer.conflist", json.dumps(cni_config(node), indent=1))
        for host in (f"127.0.0.1:{places.REGISTRY_PORT}", f"localhost:{places.REGISTRY_PORT}"):
            folder = node.folder / "certs.d" / host
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts.toml").write_text(registry_hosts(host))

    def command(self, cluster: Cluster) -> Command:
        node = self.node(cluster)
        arguments = ("containerd", "--config", str(node.folder / "containerd.toml"), "--log-level", "warn")
        return Command(arguments, pki.inputs(cluster.layout, containerd_config(node)))

    def ready(self, cluster: Cluster) -> str:
        command = ["ctr", "-a", str(self.node(cluster).containerd_socket), "--timeout", "2s", "version"]
        done = subprocess.run(command, capture_output=True, check=False)
        return "" if done.returncode == 0 else "containerd does not answer"


def resolv_conf() -> str:
    """The resolver file for pods that use the machine's: systemd's stub on loopback would lead a pod to itself."""
    real = Path("/run/systemd/resolve/resolv.conf")
    try:
        stub = "127.0.0.53" in Path("/etc/resolv.conf").read_text()
    except OSError:
        stub = False
    return str(real) if stub and real.exists() else "/etc/resolv.conf"


def half_of_machine() -> dict[str, str]:
    """Half of the processors and memory: each kubelet sees the whole machine, and there are two."""
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": f"{cores * 500}m", "memory": f"{memory // 2 // 1024}Ki"}


def kubelet_config(node: Node, keys: Path) -> dict[str, Any]:
    """The kubelet's configuration file."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "port": places.KUBELET_PORT,
        "readOnlyPort": 0,
        "healthzBindAddress": node.address,
        "healthzPort": places.KUBELET_HEALTH_PORT,
        "tlsCertFile": str(keys / f"{node.name}.crt"),
        "tlsPrivateKeyFile": str(keys / f"{node.name}.key"),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(keys / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{node.containerd_socket}",
        "clusterDomain": places.CLUSTER_DOMAIN,
        "clusterDNS": [places.DNS_SERVICE_ADDRESS],
        "resolvConf": resolv_conf(),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": node.cgroup,
        "enforceNodeAllocatable": [],
        "systemReserved": half_of_machine(),
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        # Only emptiness counts as pressure: the disk is shared with everything else on the machine, and the images
        # cannot be pulled again from anywhere but the local registry.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1Gi",
            "imagefs.available": "1Gi",
            "nodefs.inodesFree": "1%",
            "imagefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "makeIPTablesUtilChains": False,
        "serializeImagePulls": False,
        "podLogsDir": str(node.folder / "pod-logs"),
        "volumePluginDir": str(node.folder / "volume-plugins"),
        "nodeStatusUpdateFrequency": "5s",
        "nodeStatusReportFrequency": "1m0s",
        "shutdownGracePeriod": "0s",
    }


def seconds_of(timestamp: str) -> float:
    """Seconds since 1970 of Kubernetes' timestamps."""
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


class Kubelet(Component):
    """The agent of one node."""

    stage = Stage.CONTROL
    ready_seconds = 120.0

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"kubelet-{number + 1}"

    def node(self, cluster: Cluster) -> Node:
        return cluster.layout.nodes[self.number]

    def prepare(self, cluster: Cluster) -> None:
        node = self.node(cluster)
        cgroups.make(node.cgroup, cgroups.hierarchies())
        for folder in (node.kubelet_root, node.folder / "pod-logs", node.folder / "volume-plugins"):
            folder.mkdir(parents=True, exist_ok=True)
        pki.write_private(node.folder / "kubelet.json", json.dumps(kubelet_config(node, cluster.layout.keys), indent=1))
        pki.write_kubeconfig(cluster.layout, node.kubeconfig, node.name)

    def command(self, cluster: Cluster) -> Command:
        node = self.node(cluster)
        return Command(
            (
                program(cluster, "kubelet"),
                f"--config={node.folder / 'kubelet.json'}",
                f"--kubeconfig={node.kubeconfig}",
                f"--root-dir={node.kubelet_root}",
                f"--cert-dir={node.kubelet_root / 'pki'}",
                f"--hostname-override={node.name}",
                f"--node-ip={node.address}",
            ),
            pki.inputs(cluster.layout, json.dumps(kubelet_config(node, cluster.layout.keys))),
        )

    def ready(self, cluster: Cluster) -> str:
        node = self.node(cluster)
        missing = healthy(f"http://{node.address}:{places.KUBELET_HEALTH_PORT}/healthz")
        if missing:
            return missing
        # After a restart the API server still tells what the kubelet said before; a renewed lease is from the one
        # that runs now.
        record = processes_of(cluster.layout).alive(self.name)
        lease = cluster.api().find(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node.name}")
        if record is None or lease is None or seconds_of(lease["spec"]["renewTime"]) < started_at(record):
            return f"{node.name} has not reported yet"
        found = cluster.api().find(f"/api/v1/nodes/{node.name}")
        if found is None:
            return f"{node.name} is not registered"
        conditions = {entry["type"]: entry for entry in found.get("status", {}).get("conditions", [])}
        ready = conditions.get("Ready", {})
        # Only a ready node whose taints are gone takes pods.
        taints = [
            taint["key"] for taint in found["spec"].get("taints", []) if taint["key"].startswith("node.kubernetes.io/")
        ]
        if ready.get("status") != "True" or taints:
            return f"{node.name} is not ready: {ready.get('message', 'no report yet')} {' '.join(taints)}".strip()
        return ""


class KubeProxy(Component):
    """Services, by nftables rules: one for the machine, because both nodes share its network namespace."""

    name = "kube-proxy"
    stage = Stage.CONTROL

    def _path(self, cluster: Cluster) -> Path:
        return cluster.layout.config / "kube-proxy.json"

    def _kubeconfig(self, cluster: Cluster) -> Path:
        return cluster.layout.config / "kube-proxy.kubeconfig"

    def prepare(self, cluster: Cluster) -> None:
        pki.write_kubeconfig(cluster.layout, self._kubeconfig(cluster), self.name)
        pki.write_private(self._path(cluster), json.dumps(self._config(cluster), indent=1))

    def _config(self, cluster: Cluster) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": places.POD_RANGE,
            "clientConnection": {"kubeconfig": str(self._kubeconfig(cluster))},
            "hostnameOverride": cluster.layout.nodes[0].name,
            "bindAddress": cluster.layout.nodes[0].address,
            "healthzBindAddress": f"127.0.0.1:{places.KUBE_PROXY_HEALTH_PORT}",
            "metricsBindAddress": f"127.0.0.1:{places.KUBE_PROXY_METRICS_PORT}",
            "conntrack": {"maxPerCore": 0, "min": 0},
            "nftables": {"minSyncPeriod": "200ms"},
        }

    def command(self, cluster: Cluster) -> Command:
        arguments = (program(cluster, self.name), f"--config={self._path(cluster)}")
        return Command(arguments, pki.inputs(cluster.layout, json.dumps(self._config(cluster))))

    def ready(self, cluster: Cluster) -> str:
        if not listening("127.0.0.1", places.KUBE_PROXY_HEALTH_PORT):
            return "kube-proxy does not answer"
        return healthy(f"http://127.0.0.1:{places.KUBE_PROXY_HEALTH_PORT}/healthz")


def purge_node(node: Node) -> None:
    """Deletes a node's data. Its mounts have to be gone."""
    shutil.rmtree(node.folder, ignore_errors=True)

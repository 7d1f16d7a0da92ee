"""What the kernel needs for two nodes on one machine: devices, routes, forwarding, masquerading.

Pods are attached by the CNI plugin `ptp`: a veth pair each and a route to its host end, no bridge between pods. So
every packet between pods is routed by this machine: Services work between pods of one node without br_netfilter, and a
NetworkPolicy sees all traffic in the hook `forward`. A node's "bridge" has no ports; it only holds the node's address.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localcluster.components import Cluster, Component, Stage
from localcluster.errors import ClusterError
from localcluster.layout import POD_RANGE, SERVICE_RANGE, Layout, Node

TABLE = "kubeformer"
KUBE_PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))


def ip(*arguments: str, check: bool = True) -> str:
    """Runs `ip`. Raises ClusterError if it fails and that matters."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise ClusterError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def links() -> list[dict[str, Any]]:
    """All network devices with their addresses."""
    found: list[dict[str, Any]] = json.loads(ip("-j", "address") or "[]")
    return found


def addresses(link: dict[str, Any]) -> list[str]:
    return [entry.get("local", "") for entry in link.get("addr_info", [])]


def masquerade_rules(nodes: Sequence[Node]) -> str:
    """Packets from pods to the world outside leave with this machine's address; so do those that a pod sends to itself
    by way of a Service. kube-proxy does the latter for the pods of its own node alone, and it is one for both
    nodes."""
    pods = [str(pod) for node in nodes for pod in ipaddress.ip_network(node.pod_range).hosts()]
    own = ", ".join(f"{pod} . {pod}" for pod in pods)
    return f"""
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
  set itself {{
    type ipv4_addr . ipv4_addr
    elements = {{ {own} }}
  }}
  chain outside {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat ip saddr . ip daddr @itself masquerade
    ip saddr {POD_RANGE} ip daddr != {{ {POD_RANGE}, {SERVICE_RANGE} }} oifname != "lo" masquerade
  }}
}}
"""


def nft(rules: str) -> None:
    """Loads nftables rules, all of them or none."""
    done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(
            f"nft refused the rules ({done.stderr.strip().splitlines()[:1]}); the kernel needs nf_tables and NAT."
        )


def tables() -> list[tuple[str, str]]:
    """(family, name) of all nftables tables."""
    done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    return [(words[1], words[2]) for words in map(str.split, done.stdout.splitlines()) if len(words) == 3]


def delete_table(family: str, name: str) -> None:
    """Deletes a table if it is there."""
    subprocess.run(["nft", "delete", "table", family, name], capture_output=True, check=False)


SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    # What a kubelet would set by itself; set here so that `down` can put back what was there.
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def set_sysctls(saved: Path, root: Path = Path("/proc/sys")) -> None:
    """Sets what nodes need, and remembers what was there before, the first time."""
    before = {name: (root / name).read_text().strip() for name in SYSCTLS if (root / name).exists()}
    if not saved.exists():
        saved.parent.mkdir(parents=True, exist_ok=True)
        temporary = saved.with_suffix(".new")
        temporary.write_text(json.dumps(before))
        temporary.replace(saved)
    for name, value in before.items():
        if value != SYSCTLS[name]:
            _write_sysctl(root / name, SYSCTLS[name])


def restore_sysctls(saved: Path, root: Path = Path("/proc/sys")) -> None:
    """Puts back what was there before `set_sysctls`."""
    try:
        before = json.loads(saved.read_text())
    except (OSError, ValueError):
        return
    for name, value in before.items():
        if name in SYSCTLS and (root / name).exists() and (root / name).read_text().strip() != value:
            _write_sysctl(root / name, value)
    saved.unlink(missing_ok=True)


def _write_sysctl(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        if path.name == "ip_forward" and value == "1":
            raise ClusterError(f"{path} cannot be set to 1 ({error}); pods could not reach each other.") from error


def foreign_routes(layout: Layout, routes: list[dict[str, Any]]) -> list[str]:
    """Routes of others into our ranges, as "destination via device"."""
    ours = {node.bridge for node in layout.nodes}
    found = []
    for route in routes:
        destination, device = route.get("dst", ""), route.get("dev", "")
        if destination.startswith(("10.244.", "10.96.")) and device not in ours and not device.startswith("veth"):
            found.append(f"{destination} via {device}")
    return found


def ensure_bridge(node: Node) -> None:
    """Makes the device with the node's address, as far as it is not there."""
    present = {link["ifname"]: link for link in links()}
    if node.bridge not in present:
        ip("link", "add", node.bridge, "type", "bridge")
    if node.address not in addresses(present.get(node.bridge, {})):
        ip("address", "add", f"{node.address}/32", "dev", node.bridge)
    ip("link", "set", node.bridge, "up")


class Network(Component):
    """The devices, routes and rules; no process."""

    name = "network"
    stage = Stage.STORE

    def prepare(self, cluster: Cluster) -> None:
        set_sysctls(cluster.layout.cluster / "sysctls.json")
        for node in cluster.layout.nodes:
            ensure_bridge(node)
        # Addresses that no pod has lead nowhere, instead of out into the world. Services need a device as route, so
        # that a process of this machine can speak to them too: the kernel looks for a route before kube-proxy's rules
        # change it.
        for number, target in enumerate((POD_RANGE, SERVICE_RANGE)):
            node = cluster.layout.nodes[number]
            ip("route", "replace", target, "dev", node.bridge, "src", node.address)
        nft(masquerade_rules(cluster.layout.nodes))

    def ready(self, cluster: Cluster) -> str:
        present = {link["ifname"]: link for link in links()}
        for node in cluster.layout.nodes:
            if node.address not in addresses(present.get(node.bridge, {})):
                return f"no device {node.bridge} with address {node.address}"
        return ""

    def clean(self, cluster: Cluster) -> None:
        for family, name in (("ip", TABLE), *KUBE_PROXY_TABLES):
            delete_table(family, name)
        ours = {node.bridge for node in cluster.layout.nodes}
        gateways = {node.address for node in cluster.layout.nodes}
        for link in links():
            # A pod's host end carries its node's address as gateway; most are gone with their network namespaces.
            if link["ifname"] in ours or (link["ifname"].startswith("veth") and gateways & set(addresses(link))):
                ip("link", "delete", link["ifname"], check=False)
        restore_sysctls(cluster.layout.cluster / "sysctls.json")

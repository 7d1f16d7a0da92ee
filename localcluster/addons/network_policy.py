"""What NetworkPolicies mean, as nftables rules. Pure: objects of the API server in, the text of one table out.

A packet between two pods has to be let through twice, by the policies for egress that select its sender and by those
for ingress that select its receiver. A pod that no policy selects for a direction is open in that direction. Answers to
what was let through pass, and so does everything from the nodes themselves (the kubelet's probes). Addresses of
Services are translated before the hook, so the rules see pods alone.

Standard: the reference of networking.k8s.io/v1 NetworkPolicy. IPv4 only, as the cluster is. A policy acts on a pod when
its address is known, some tenths of a second after its start.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from localcluster.kube import Object

TABLE = "kubeformer_policy"
EVERYWHERE = "0.0.0.0/0"


@dataclass(frozen=True, slots=True)
class Pod:
    """What the rules need of a pod: where it is, its labels and the ports that have names."""

    namespace: str
    name: str
    address: str
    labels: Mapping[str, str]
    ports: Mapping[tuple[str, str], int]
    """(protocol, name) to number."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One side of a rule: networks, or a pod."""

    network: str
    excepted: tuple[str, ...] = ()
    pod: Pod | None = None


def pod_from(raw: Object) -> Pod | None:
    """The pod; None for one without an address of its own. One that ended may have left it to another."""
    status, spec = raw.get("status", {}), raw["spec"]
    address = status.get("podIP", "")
    if not address or ":" in address or spec.get("hostNetwork") or status.get("phase") in ("Succeeded", "Failed"):
        return None
    ports = {
        (port.get("protocol", "TCP"), port["name"]): int(port["containerPort"])
        for container in (*spec.get("containers", ()), *spec.get("initContainers", ()))
        for port in container.get("ports", ())
        if port.get("name")
    }
    metadata = raw["metadata"]
    return Pod(metadata["namespace"], metadata["name"], address, metadata.get("labels") or {}, ports)


def selects(selector: Object | None, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector selects the labels. An empty one selects everything, none at all selects nothing."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions") or ())


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    key, operator, values = expression["key"], expression["operator"], expression.get("values") or ()
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return labels.get(key) not in values
    return (key in labels) is (operator == "Exists")


def directions(policy: Object) -> tuple[str, ...]:
    """Ingress, Egress or both; left out, Ingress, and Egress only if there are rules for it."""
    spec = policy["spec"]
    given = spec.get("policyTypes")
    return tuple(given) if given else ("Ingress", *(["Egress"] if spec.get("egress") else []))


def peers_of(
    entries: Sequence[Object] | None, home: str, pods: Sequence[Pod], namespaces: Mapping[str, Mapping[str, str]]
) -> list[Peer]:
    """What a rule's `from` or `to` stands for: everywhere if there are no entries, otherwise networks and pods."""
    if not entries:
        return [Peer(EVERYWHERE)]
    found: list[Peer] = []
    for entry in entries:
        if block := entry.get("ipBlock"):
            if ":" not in block["cidr"]:
                excepted = tuple(str(ipaddress.ip_network(cidr, strict=False)) for cidr in block.get("except") or ())
                found.append(Peer(str(ipaddress.ip_network(block["cidr"], strict=False)), excepted))
            continue
        places, those = entry.get("namespaceSelector"), entry.get("podSelector")
        for pod in pods:
            near = pod.namespace == home if places is None else selects(places, namespaces.get(pod.namespace, {}))
            if near and (those is None or selects(those, pod.labels)):
                found.append(Peer(f"{pod.address}/32", pod=pod))
    return found


def ports_of(entries: Sequence[Object] | None, receiver: Pod | None) -> list[str]:
    """The match on ports, one a protocol; [""] is all ports. A named port is the receiver's."""
    if not entries:
        return [""]
    numbers: dict[str, list[str]] = {}
    whole: list[str] = []
    for entry in entries:
        protocol, port = entry.get("protocol", "TCP"), entry.get("port")
        if port is None:
            whole.append(protocol)
        elif isinstance(port, int):
            end = entry.get("endPort")
            numbers.setdefault(protocol, []).append(f"{port}-{end}" if end and end > port else str(port))
        elif receiver and (protocol, port) in receiver.ports:
            numbers.setdefault(protocol, []).append(str(receiver.ports[protocol, port]))
    matches = [f"meta l4proto {protocol.lower()}" for protocol in dict.fromkeys(whole)]
    for protocol, these in numbers.items():
        if protocol not in whole:
            matches.append(f"{protocol.lower()} dport {{ {', '.join(dict.fromkeys(these))} }}")
    return matches


def rules_for(
    pod: Pod,
    direction: str,
    policies: Iterable[Object],
    pods: Sequence[Pod],
    namespaces: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """The rules of one pod in one direction: what is let through, then the end of all else."""
    incoming = direction == "Ingress"
    side = "saddr" if incoming else "daddr"
    rules = [f"ip {side} {pod.address} return"]  # a pod always reaches itself
    for policy in policies:
        home = policy["metadata"]["namespace"]
        for rule in policy["spec"].get("ingress" if incoming else "egress") or ():
            peers = peers_of(rule.get("from" if incoming else "to"), home, pods, namespaces)
            named = any(isinstance(port.get("port"), str) for port in rule.get("ports") or ())
            if incoming or not named:
                receiver = pod if incoming else None
                rules.extend(_joined(peers, side, ports_of(rule.get("ports"), receiver)))
            else:
                # A port's name means another number at each receiver, also at those that a network contains.
                inside = [Peer(f"{other.address}/32", pod=other) for other in pods if _within(other, peers)]
                for peer in (*peers, *inside):
                    rules.extend(_joined([peer], side, ports_of(rule.get("ports"), peer.pod)))
    return [*dict.fromkeys(rules), "drop"]


def _within(pod: Pod, peers: Iterable[Peer]) -> bool:
    """Whether a pod's address lies in one of the networks that are no pods themselves."""
    address = ipaddress.ip_address(pod.address)
    return any(
        peer.pod is None
        and address in ipaddress.ip_network(peer.network)
        and not any(address in ipaddress.ip_network(network) for network in peer.excepted)
        for peer in peers
    )


def _joined(peers: Sequence[Peer], side: str, ports: Sequence[str]) -> list[str]:
    """One rule for all plain addresses together, and one for each network with exceptions."""
    addresses: list[str] = []
    if any(peer.network == EVERYWHERE and not peer.excepted for peer in peers):
        addresses.append("")
    else:
        plain = ipaddress.collapse_addresses(ipaddress.IPv4Network(peer.network) for peer in peers if not peer.excepted)
        if joined := ", ".join(str(network) for network in plain):
            addresses.append(f"ip {side} {{ {joined} }} ")
        for peer in peers:
            if peer.excepted:
                addresses.append(f"ip {side} {peer.network} ip {side} != {{ {', '.join(peer.excepted)} }} ")
    return [f"{address}{port} return".strip().replace("  ", " ") for address in addresses for port in ports]


def ruleset(policies: Sequence[Object], raw_pods: Sequence[Object], raw_namespaces: Sequence[Object]) -> str:
    """The whole table for `nft -f`: it takes the place of the one that is there in one transaction."""
    namespaces = {entry["metadata"]["name"]: entry["metadata"].get("labels") or {} for entry in raw_namespaces}
    pods = sorted((pod for raw in raw_pods if (pod := pod_from(raw))), key=lambda pod: (pod.namespace, pod.name))
    chains: list[str] = []
    jumps: dict[str, list[str]] = {"Ingress": [], "Egress": []}
    for pod in pods:
        for direction, entries in jumps.items():
            applying = [
                policy
                for policy in policies
                if policy["metadata"]["namespace"] == pod.namespace
                and direction in directions(policy)
                and selects(policy["spec"].get("podSelector") or {}, pod.labels)
            ]
            if not applying:
                continue
            chain = f"{direction.lower()}_{pod.address.replace('.', '_')}"
            entries.append(f"{pod.address} : jump {chain}")
            rules = rules_for(pod, direction, applying, pods, namespaces)
            chains.append(_chain(chain, [f"comment_{pod.namespace}_{pod.name}", *rules]))
    body = [*chains]
    leaving = f"ip saddr vmap {{ {', '.join(jumps['Egress'])} }}" if jumps["Egress"] else ""
    arriving = f"ip daddr vmap {{ {', '.join(jumps['Ingress'])} }}" if jumps["Ingress"] else ""
    known = "ct state established,related accept"
    if leaving or arriving:
        # Before kube-proxy's own filters, after its translation of Services' addresses.
        head = "type filter hook forward priority filter - 5; policy accept;"
        body.append(_chain("forward", [head, known, *filter(None, (leaving, arriving))]))
    if leaving:
        # From a pod to this machine itself: the API server, and whatever listens on a node's address.
        head = "type filter hook input priority filter - 5; policy accept;"
        body.append(_chain("input", [head, known, leaving]))
    text = "\n".join(body)
    return f"table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{text}\n}}\n"


def _chain(name: str, rules: Sequence[str]) -> str:
    lines = [f"# {rule.removeprefix('comment_')}" if rule.startswith("comment_") else rule for rule in rules]
    return "\n".join([f"  chain {name} {{", *(f"    {line}" for line in lines), "  }"])

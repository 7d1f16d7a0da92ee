"""NetworkPolicies as nftables rules: a small interpreter reads them back, and the standard says what they should do."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from localcluster.addons.network_policy import ruleset

Object = dict[str, Any]

NAMESPACES = [
    {"metadata": {"name": "red", "labels": {"team": "a"}}},
    {"metadata": {"name": "blue", "labels": {"team": "b"}}},
]
OUTSIDE = "192.0.2.7"


def pod(number: int, namespace: str = "red", labels: dict[str, str] | None = None, **status: str) -> Object:
    return {
        "metadata": {"namespace": namespace, "name": f"pod-{number}", "labels": labels or {}},
        "spec": {"containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8000 + number}]}]},
        "status": {"podIP": f"10.244.0.{number}", "phase": "Running", **status},
    }


def policy(name: str, namespace: str = "red", selector: Object | None = None, **spec: Any) -> Object:
    return {"metadata": {"namespace": namespace, "name": name}, "spec": {"podSelector": selector or {}, **spec}}


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection."""

    source: str
    target: str
    protocol: str
    port: int


# --- An interpreter of the few forms of rules that are written. ---


def chains_of(text: str) -> dict[str, list[str]]:
    found = re.findall(r"chain (\w+) \{\n(.*?)\n  \}", text, re.DOTALL)
    return {
        name: [line.strip() for line in body.splitlines() if not line.strip().startswith("#")] for name, body in found
    }


def elements(words: str) -> list[str]:
    return [word.strip() for word in words.strip("{} ").split(",")]


def verdict(chains: dict[str, list[str]], name: str, packet: Packet) -> str:
    """What becomes of a packet at the end of a chain: "accept" or "drop"; a chain that is not there lets pass."""
    for rule in chains.get(name, []):
        jump = re.fullmatch(r"ip (saddr|daddr) vmap \{ (.*) \}", rule)
        if jump:
            address = packet.source if jump[1] == "saddr" else packet.target
            targets = dict(re.findall(r"([\d.]+) : jump (\w+)", jump[2]))
            if address in targets and verdict(chains, targets[address], packet) == "drop":
                return "drop"
            continue
        if rule.startswith(("type filter", "ct state")):
            continue
        rest, _, ending = rule.rpartition(" ")
        matches = True
        for side, negated, value in re.findall(r"ip (saddr|daddr) (!= )?(\{[^}]*\}|[\d./]+)", rest):
            address = ipaddress.ip_address(packet.source if side == "saddr" else packet.target)
            within = any(address in ipaddress.ip_network(entry) for entry in elements(value))
            matches &= within != bool(negated)
        for protocol in re.findall(r"meta l4proto (\w+)", rest):
            matches &= protocol == packet.protocol.lower()
        for protocol, value in re.findall(r"(\w+) dport (\{[^}]*\})", rest):
            ranges = [(entry.split("-")[0], entry.split("-")[-1]) for entry in elements(value)]
            matches &= protocol == packet.protocol.lower()
            matches &= any(int(low) <= packet.port <= int(high) for low, high in ranges)
        if matches:
            return "drop" if ending == "drop" else "accept"
    return "accept"


def lets_through(policies: Sequence[Object], pods: Sequence[Object], packet: Packet) -> bool:
    return verdict(chains_of(ruleset(policies, pods, NAMESPACES)), "forward", packet) == "accept"


# --- The standard's words, as directly as they can be written. ---


def selected(selector: Object, labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def by_the_standard(policies: Sequence[Object], pods: Sequence[Object], packet: Packet) -> bool:
    known = {entry["status"]["podIP"]: entry for entry in pods}
    if packet.source == packet.target:
        return True
    return all(
        direction_allows(policies, known, packet, direction, mine, other)
        for direction, mine, other in (
            ("Egress", packet.source, packet.target),
            ("Ingress", packet.target, packet.source),
        )
    )


def direction_allows(
    policies: Sequence[Object], known: dict[str, Object], packet: Packet, direction: str, mine: str, other: str
) -> bool:
    if mine not in known:
        return True
    me = known[mine]["metadata"]
    applying = [
        entry
        for entry in policies
        if entry["metadata"]["namespace"] == me["namespace"]
        and direction in entry["spec"]["policyTypes"]
        and selected(entry["spec"]["podSelector"], me["labels"])
    ]
    if not applying:
        return True
    rules_key, peers_key = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    for entry in applying:
        for rule in entry["spec"].get(rules_key, []):
            peers, ports = rule.get(peers_key, []), rule.get("ports", [])
            home = entry["metadata"]["namespace"]
            if peers and not any(peer_matches(peer, home, known.get(other), other) for peer in peers):
                continue
            if ports and not any(port_matches(port, known.get(packet.target), packet) for port in ports):
                continue
            return True
    return False


def peer_matches(peer: Object, home: str, other: Object | None, address: str) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        there = ipaddress.ip_address(address)
        excepted = any(there in ipaddress.ip_network(cidr) for cidr in block.get("except", []))
        return there in ipaddress.ip_network(block["cidr"]) and not excepted
    if other is None:
        return False
    labels = {entry["metadata"]["name"]: entry["metadata"]["labels"] for entry in NAMESPACES}
    place = other["metadata"]["namespace"]
    near = selected(peer["namespaceSelector"], labels[place]) if "namespaceSelector" in peer else place == home
    return near and selected(peer.get("podSelector", {}), other["metadata"]["labels"])


def port_matches(port: Object, receiver: Object | None, packet: Packet) -> bool:
    if port.get("protocol", "TCP") != packet.protocol:
        return False
    if "port" not in port:
        return True
    if isinstance(port["port"], str):
        declared = receiver["spec"]["containers"][0]["ports"] if receiver else []
        return any(entry["name"] == port["port"] and entry["containerPort"] == packet.port for entry in declared)
    return bool(port["port"] <= packet.port <= port.get("endPort", port["port"]))


labels = st.sampled_from([{}, {"app": "x"}, {"app": "y"}])
selectors = st.sampled_from([{}, {"matchLabels": {"app": "x"}}, {"matchLabels": {"app": "y"}}])
places = st.sampled_from([{}, {"matchLabels": {"team": "a"}}, {"matchLabels": {"team": "b"}}])
blocks = st.sampled_from(
    [
        {"cidr": "0.0.0.0/0"},
        {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/30"]},
        {"cidr": "10.244.0.0/24", "except": ["10.244.0.2/32", "192.0.2.0/24"]},
        {"cidr": "192.0.2.0/24"},
    ]
)
peers = st.one_of(
    st.fixed_dictionaries({"podSelector": selectors}),
    st.fixed_dictionaries({"namespaceSelector": places}),
    st.fixed_dictionaries({"namespaceSelector": places, "podSelector": selectors}),
    st.fixed_dictionaries({"ipBlock": blocks}),
)
ports = st.sampled_from(
    [
        {"port": 8001},
        {"port": 8001, "protocol": "UDP"},
        {"port": 8000, "endPort": 8002},
        {"port": "http"},
        {"protocol": "UDP"},
        {"port": "nobody-has-this"},
    ]
)


def rules(key: str) -> st.SearchStrategy[list[Object]]:
    rule = st.fixed_dictionaries({}, optional={key: st.lists(peers, max_size=2), "ports": st.lists(ports, max_size=2)})
    return st.lists(rule, max_size=2)


policies = st.builds(
    lambda namespace, selector, types, ingress, egress: policy(
        "p", namespace, selector, policyTypes=types, ingress=ingress, egress=egress
    ),
    st.sampled_from(["red", "blue"]),
    selectors,
    st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
    rules("from"),
    rules("to"),
)
pods_of_a_cluster = st.tuples(*(st.tuples(st.sampled_from(["red", "blue"]), labels) for _ in range(3))).map(
    lambda chosen: [pod(number + 1, place, given) for number, (place, given) in enumerate(chosen)]
)
PACKETS = [
    Packet(source, target, protocol, port)
    for source, target in itertools.product(("10.244.0.1", "10.244.0.2", "10.244.0.3", OUTSIDE), repeat=2)
    for protocol in ("TCP", "UDP")
    for port in (8001, 8002, 53)
]


@settings(max_examples=150)
@given(st.lists(policies, min_size=1, max_size=3), pods_of_a_cluster)
def test_the_rules_let_through_what_the_standard_does(chosen: list[Object], pods: list[Object]) -> None:
    chains = chains_of(ruleset(chosen, pods, NAMESPACES))
    for packet in PACKETS:
        assert (verdict(chains, "forward", packet) == "accept") == by_the_standard(chosen, pods, packet), packet


def test_without_policies_there_are_no_rules_at_all() -> None:
    assert chains_of(ruleset([], [pod(1), pod(2)], NAMESPACES)) == {}


def test_a_pod_that_ended_has_no_say_about_its_old_address() -> None:
    closed = [policy("closed", policyTypes=["Ingress"])]
    packet = Packet(OUTSIDE, "10.244.0.1", "TCP", 8001)
    assert not lets_through(closed, [pod(1)], packet)
    assert lets_through(closed, [pod(1, phase="Succeeded")], packet)


def test_a_pod_on_the_nodes_own_network_is_left_alone() -> None:
    hosts = pod(1)
    hosts["spec"]["hostNetwork"] = True
    assert lets_through([policy("closed", policyTypes=["Ingress"])], [hosts], Packet(OUTSIDE, "10.244.0.1", "TCP", 1))


def test_left_out_types_mean_ingress_and_egress_only_with_rules() -> None:
    outgoing, incoming = Packet("10.244.0.1", OUTSIDE, "TCP", 1), Packet(OUTSIDE, "10.244.0.1", "TCP", 1)
    assert lets_through([policy("plain")], [pod(1)], outgoing)
    assert not lets_through([policy("plain")], [pod(1)], incoming)
    only_dns = policy("dns", egress=[{"ports": [{"port": 53, "protocol": "UDP"}]}])
    assert not lets_through([only_dns], [pod(1)], outgoing)


def test_expressions_select_as_the_api_says() -> None:
    packet = Packet(OUTSIDE, "10.244.0.1", "TCP", 1)
    for expression, held in (
        ({"key": "app", "operator": "In", "values": ["x", "y"]}, True),
        ({"key": "app", "operator": "NotIn", "values": ["x"]}, False),
        ({"key": "tier", "operator": "NotIn", "values": ["x"]}, True),
        ({"key": "app", "operator": "Exists"}, True),
        ({"key": "app", "operator": "DoesNotExist"}, False),
    ):
        closed = policy("closed", selector={"matchExpressions": [expression]}, policyTypes=["Ingress"])
        assert lets_through([closed], [pod(1, labels={"app": "x"})], packet) != held, expression


def test_calls_to_this_machine_itself_are_held_to_egress_too() -> None:
    chains = chains_of(ruleset([policy("mute", policyTypes=["Egress"])], [pod(1)], NAMESPACES))
    assert verdict(chains, "input", Packet("10.244.0.1", "10.244.0.254", "TCP", 6443)) == "drop"
    assert verdict(chains, "input", Packet("10.244.0.9", "10.244.0.254", "TCP", 6443)) == "accept"

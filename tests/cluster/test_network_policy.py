"""NetworkPolicies are enforced: on one node and between two, in both directions, for the pods they select alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from localcluster.kube import Object
from tests.cluster.kubectl import SLEEP, CommandFailed, Kubectl, python_pod, wait_until

SERVE = """
import http.server, threading
for port in (8080, 9090):
    server = http.server.ThreadingHTTPServer(("", port), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever).start()
"""


@pytest.fixture(scope="module")
def pods(kubectl: Kubectl, image: str, nodes: list[str]) -> Iterator[None]:
    """A server on the first node behind a Service, and a client on each node."""
    kubectl.apply(
        python_pod("server", image, SERVE, node=nodes[0], ports=[{"name": "http", "containerPort": 8080}]),
        python_pod("near", image, SLEEP, node=nodes[0], labels={"role": "friend"}),
        python_pod("far", image, SLEEP, node=nodes[1], labels={"role": "stranger"}),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "server"},
            "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )
    kubectl.wait_ready("server", "near", "far")
    yield
    kubectl.run("delete", "pod", "server", "near", "far")


@pytest.fixture(autouse=True)
def without_policies(kubectl: Kubectl, pods: None) -> Iterator[None]:
    """Each test begins and ends with all connections open."""
    yield
    kubectl.run("delete", "networkpolicies", "--all")


def reaches(kubectl: Kubectl, client: str, port: int = 8080, host: str = "") -> bool:
    """Whether a pod can connect to the server, by its address unless a name is given."""
    host = host or kubectl.get("pod", "server")["status"]["podIP"]
    code = f"import socket; socket.create_connection(({host!r}, {port}), 1.5).close()"
    try:
        kubectl.execute(client, "/opt/venv/bin/python", "-c", code)
    except CommandFailed as error:
        if "TimeoutError" in str(error) or "timed out" in str(error):
            return False
        raise
    return True


def policy(name: str, selected: str, **spec: object) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"app": selected}}, **spec},
    }


def settles(kubectl: Kubectl, expected: dict[tuple[str, int], bool]) -> None:
    """Waits until connections from (client, port) succeed or fail as expected, all of them."""
    found: dict[tuple[str, int], bool] = {}

    def as_expected() -> bool:
        found.update({key: reaches(kubectl, *key) for key in expected})
        return found == expected

    wait_until(as_expected, f"connections are {expected}", lambda: f"They are {found}.")


def test_a_forbidden_connection_fails_and_succeeds_without_the_policy(kubectl: Kubectl) -> None:
    settles(kubectl, {("near", 8080): True, ("far", 8080): True})
    kubectl.apply(policy("nobody", "server", policyTypes=["Ingress"]))
    settles(kubectl, {("near", 8080): False, ("far", 8080): False})
    kubectl.run("delete", "networkpolicy", "nobody")
    settles(kubectl, {("near", 8080): True, ("far", 8080): True})


def test_only_friends_get_in_and_only_to_the_named_port(kubectl: Kubectl) -> None:
    friend = {"podSelector": {"matchLabels": {"role": "friend"}}}
    kubectl.apply(policy("friends", "server", ingress=[{"from": [friend], "ports": [{"port": "http"}]}]))
    settles(kubectl, {("near", 8080): True, ("near", 9090): False, ("far", 8080): False})
    # The same through the Service, whose address is translated before the rules are asked.
    assert reaches(kubectl, "near", 80, f"server.{kubectl.namespace}")
    assert not reaches(kubectl, "far", 80, f"server.{kubectl.namespace}")


def test_a_pod_may_be_kept_from_calling_out_while_others_may_not_notice(kubectl: Kubectl) -> None:
    kubectl.apply(policy("mute", "far", policyTypes=["Egress"]))
    settles(kubectl, {("far", 8080): False, ("near", 8080): True})
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": kubectl.namespace}}}
    kubectl.apply(policy("mute", "far", policyTypes=["Egress"], egress=[{"to": [here], "ports": [{"port": 9090}]}]))
    settles(kubectl, {("far", 9090): True, ("far", 8080): False})

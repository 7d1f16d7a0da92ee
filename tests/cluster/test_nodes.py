"""Two real nodes: pods on both, Services and names across them, logs and exec, and Pod Security for everybody."""

from __future__ import annotations

import pytest

from localcluster.components import Cluster
from tests.cluster.kubectl import SLEEP, CommandFailed, Kubectl, python_pod

SERVE = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.uname().nodename.encode())
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


def test_there_are_two_nodes_and_both_are_ready(cluster: Cluster, nodes: list[str]) -> None:
    assert len(nodes) >= 2
    for node in cluster.api().get("/api/v1/nodes")["items"]:
        if node["metadata"]["name"] in nodes[:2]:
            assert {"Ready": "True"}.items() <= {c["type"]: c["status"] for c in node["status"]["conditions"]}.items()


def test_a_pod_finds_one_on_the_other_node_by_name(kubectl: Kubectl, image: str, nodes: list[str]) -> None:
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "workers"},
            "spec": {"clusterIP": "None", "selector": {"group": "workers"}},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "front"},
            "spec": {"selector": {"app": "worker"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
        python_pod(
            "worker", image, SERVE, node=nodes[0], labels={"group": "workers"}, hostname="worker-0", subdomain="workers"
        ),
        python_pod("caller", image, SLEEP, node=nodes[1]),
    )
    kubectl.wait_ready("worker", "caller")
    for host in ("worker-0.workers:8080", "front"):
        # Names appear a moment after the pod is ready; the caller asks again until they do.
        code = f"""
import time, urllib.request
for attempt in range(200):
    try:
        print(urllib.request.urlopen("http://{host}", timeout=3).read().decode()); break
    except OSError as error:
        last = error; time.sleep(0.2)
else:
    raise last
"""
        assert kubectl.execute("caller", "/opt/venv/bin/python", "-c", code, timeout=120).strip() == "worker-0"


def test_what_a_pod_prints_can_be_read(kubectl: Kubectl, image: str, nodes: list[str]) -> None:
    for node in nodes[:2]:
        kubectl.apply(python_pod(f"prints-{node}", image, "import os; print(os.getuid(), os.getcwd())", node=node))
    for node in nodes[:2]:
        kubectl.wait_for_phase(f"prints-{node}", "Succeeded")
        assert kubectl.run("logs", f"prints-{node}").split()[0] == "65532"


def test_a_pod_that_wants_to_be_root_is_refused(kubectl: Kubectl, image: str) -> None:
    pod = python_pod("root", image, SLEEP)
    pod["spec"]["securityContext"] = {"runAsUser": 0}
    with pytest.raises(CommandFailed, match="violates PodSecurity"):
        kubectl.apply(pod)


def test_a_pod_without_a_role_may_read_nothing_from_the_api_server(kubectl: Kubectl, image: str) -> None:
    code = """
import ssl, urllib.error, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
request = urllib.request.Request("https://kubernetes.default.svc/api/v1/secrets")
request.add_header("Authorization", "Bearer " + open(folder + "token").read())
try:
    urllib.request.urlopen(request, context=ssl.create_default_context(cafile=folder + "ca.crt"))
except urllib.error.HTTPError as error:
    print(error.code)
"""
    kubectl.apply(python_pod("curious", image, code, automountServiceAccountToken=True))
    kubectl.wait_for_phase("curious", "Succeeded")
    assert kubectl.run("logs", "curious").strip() == "403"

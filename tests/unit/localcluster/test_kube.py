"""The small client, against a real HTTP server that speaks as much of the API as a test needs."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from localcluster.errors import ClusterError
from localcluster.kube import Api, ApiError, object_path


class Server(BaseHTTPRequestHandler):
    """Keeps objects by path; PATCH stores, GET finds, a watch tells two events."""

    objects: dict[str, Any]
    seen: list[tuple[str, str, str]]

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""

    def _answer(self, code: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.seen.append(("GET", self.path, self.headers.get("Authorization", "")))
        if "watch=true" in self.path:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"type":"ADDED"}\n{"type":"DELETED"}\n')
        elif path in self.objects:
            self._answer(200, self.objects[path])
        else:
            self._answer(404, {"kind": "Status", "reason": "NotFound", "message": f"{path} not found"})

    def do_PATCH(self) -> None:
        path = self.path.partition("?")[0]
        self.seen.append(("PATCH", self.path, self.headers["Content-Type"]))
        self.objects[path] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(200, self.objects[path])

    def do_DELETE(self) -> None:
        found = self.objects.pop(self.path, None)
        self._answer(200 if found else 404, {"reason": "" if found else "NotFound", "message": "gone"})


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (Server,), {"objects": {}, "seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def api(server: ThreadingHTTPServer) -> Api:
    return Api(f"http://127.0.0.1:{server.server_port}", ssl.create_default_context(), "secret")


CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "n"}, "data": {"k": "v"}}


def test_an_applied_object_is_found_and_gone_after_deletion(api: Api, server: ThreadingHTTPServer) -> None:
    api.apply(CONFIG)
    path = "/api/v1/namespaces/n/configmaps/a"
    assert api.find(path) == CONFIG
    api.delete(path)
    assert api.find(path) is None
    api.delete(path)
    handler: Any = server.RequestHandlerClass
    patch = next(entry for entry in handler.seen if entry[0] == "PATCH")
    assert patch[1].endswith("?fieldManager=localcluster&force=true")
    assert patch[2] == "application/apply-patch+yaml"
    assert ("GET", path, "Bearer secret") in handler.seen


def test_an_error_carries_the_servers_reason_and_message(api: Api) -> None:
    with pytest.raises(ApiError, match="/api/v1/nodes/x not found") as caught:
        api.get("/api/v1/nodes/x")
    assert (caught.value.code, caught.value.reason) == (404, "NotFound")


def test_a_watch_yields_events_until_the_server_ends_it(api: Api) -> None:
    assert [event["type"] for event in api.watch("/api/v1/pods", "7")] == ["ADDED", "DELETED"]


def test_a_proxy_of_the_shell_is_not_used(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    api.apply(CONFIG)


def test_waiting_ends_with_a_sentence_when_nothing_comes(api: Api) -> None:
    with pytest.raises(ClusterError, match=r"the node did not come about within 0 s \(/api/v1/nodes/x not found\)"):
        api.wait("the node", lambda api: bool(api.get("/api/v1/nodes/x")), seconds=0, pause=0.01)


@pytest.mark.parametrize(
    ("version", "kind", "path"),
    [
        ("v1", "Pod", "/api/v1/namespaces/default/pods/x"),
        ("v1", "Namespace", "/api/v1/namespaces/x"),
        ("v1", "Endpoints", "/api/v1/namespaces/default/endpoints/x"),
        ("apps/v1", "Deployment", "/apis/apps/v1/namespaces/default/deployments/x"),
        ("networking.k8s.io/v1", "NetworkPolicy", "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/x"),
        ("networking.k8s.io/v1", "Ingress", "/apis/networking.k8s.io/v1/namespaces/default/ingresses/x"),
        ("storage.k8s.io/v1", "StorageClass", "/apis/storage.k8s.io/v1/storageclasses/x"),
        ("scheduling.k8s.io/v1", "PriorityClass", "/apis/scheduling.k8s.io/v1/priorityclasses/x"),
        ("rbac.authorization.k8s.io/v1", "ClusterRole", "/apis/rbac.authorization.k8s.io/v1/clusterroles/x"),
        ("v1", "PersistentVolumeClaim", "/api/v1/namespaces/default/persistentvolumeclaims/x"),
    ],
)
def test_paths_of_kinds_follow_their_plural_and_scope(version: str, kind: str, path: str) -> None:
    assert object_path({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}}) == path


def test_a_missing_kubeconfig_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"There is no kubeconfig at .*run `python -m localcluster up`"):
        Api.from_kubeconfig(tmp_path / "kubeconfig")


def test_a_token_and_the_server_are_read_from_a_kubeconfig(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text('clusters:\n- cluster:\n    server: https://h:1\nusers:\n- user:\n    token: "t"\n')
    api = Api.from_kubeconfig(path)
    assert (api.url, api.token) == ("https://h:1", "t")


def test_a_kubeconfig_whose_user_is_known_by_a_plugin_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\nprintf 'users:\\n- user:\\n    exec:\\n      command: login\\n'\n")
    kubectl.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ClusterError, match="plugin"):
        Api.from_any_kubeconfig(tmp_path / "kubeconfig")


def test_certificates_in_a_kubeconfig_are_really_used(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    nonsense = base64.b64encode(b"no certificate").decode()
    path.write_text(f"    server: https://h:1\n    certificate-authority-data: {nonsense}\n")
    with pytest.raises(ssl.SSLError):
        Api.from_kubeconfig(path)

"""A small client of the API server over the standard library: JSON in, JSON out, certificates from a kubeconfig.

    api = Api.from_kubeconfig(path)
    api.get("/api/v1/nodes")["items"]
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}})
    for event in api.watch("/api/v1/pods"): ...

`apply` is a server-side apply with the field manager "localcluster".
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster.errors import ClusterError

FIELD_MANAGER = "localcluster"

Object = dict[str, Any]


class ApiError(ClusterError):
    """An answer of the API server that is no success.

    Attributes:
        code: the HTTP status.
        reason: Kubernetes' reason, such as "NotFound".
    """

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


def _inline(value: str, kind: str, folder: Path) -> str:
    path = folder / kind
    path.write_bytes(base64.b64decode(value))
    path.chmod(0o600)
    return str(path)


@dataclass(frozen=True, slots=True)
class Api:
    """A client. Each call opens a connection of its own, so threads may share one."""

    url: str
    tls: ssl.SSLContext
    token: str = ""

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Api:
        """Reads certificates or a token from a kubeconfig that `localcluster` or kind wrote (one cluster, one user).

        Raises:
            ClusterError: if the file is not there or has no server.
        """
        try:
            text = path.read_text()
        except OSError:
            raise ClusterError(f"There is no kubeconfig at {path}; run `python -m localcluster up`.") from None
        # The files read here have one value a line; a YAML parser is not in the standard library.
        values = dict(re.findall(r'^\s*(?:- )?([a-z-]+): *"?([^"\s{]+)"?\s*$', text, re.MULTILINE))
        if "server" not in values:
            raise ClusterError(f"The kubeconfig {path} names no server.")
        with tempfile.TemporaryDirectory() as folder:
            files = {
                kind: _inline(values[f"{kind}-data"], kind, Path(folder))
                if f"{kind}-data" in values
                else values.get(kind, "")
                for kind in ("certificate-authority", "client-certificate", "client-key")
            }
            tls = ssl.create_default_context(cafile=files["certificate-authority"] or None)
            if files["client-certificate"]:
                tls.load_cert_chain(files["client-certificate"], files["client-key"])
        return cls(values["server"], tls, values.get("token", ""))

    @classmethod
    def from_any_kubeconfig(cls, path: Path) -> Api:
        """Reads the current context of a kubeconfig that somebody else wrote, with kubectl's help.

        Raises:
            ClusterError: if kubectl is missing, or the user in it is known by a plugin alone.
        """
        beside = Path(sys.executable).with_name("kubectl")
        kubectl = str(beside) if beside.exists() else shutil.which("kubectl")
        if kubectl is None:
            raise ClusterError("kubectl is missing; put it on PATH to use CLUSTER=current.")
        command = [kubectl, "--kubeconfig", str(path), "config", "view", "--raw", "--minify", "--flatten", "-o", "yaml"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"The kubeconfig {path} has no usable current context: {done.stderr.strip()}")
        if re.search(r"^ *(exec|auth-provider):", done.stdout, re.MULTILINE):
            raise ClusterError(
                f"The user of {path} is known by a plugin; use a kubeconfig with a certificate or a token."
            )
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "kubeconfig"
            plain.write_text(done.stdout)
            plain.chmod(0o600)
            return cls.from_kubeconfig(plain)

    def open(
        self, method: str, path: str, body: Object | None, content_type: str, timeout: float
    ) -> http.client.HTTPResponse:
        """Sends a request and returns the open answer.

        Raises:
            ApiError: for an answer that is no success.
            OSError: if the server cannot be reached.
        """
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Accept", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        if body is not None:
            request.add_header("Content-Type", content_type)
            request.data = json.dumps(body).encode()
        # An empty ProxyHandler: the cluster is on this machine, whatever proxy the shell has.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.tls)
        )
        try:
            response: http.client.HTTPResponse = opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                status = json.loads(text)
            except ValueError:
                status = {}
            status = status if isinstance(status, dict) else {}
            raise ApiError(error.code, status.get("reason", ""), status.get("message", text or error.reason)) from None
        except http.client.HTTPException as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        return response

    def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
        timeout: float = 30.0,
    ) -> Object:
        """Sends a request and returns the decoded answer. Raises as `open` does."""
        with self.open(method, path, body, content_type, timeout) as response:
            answer: Object = json.loads(response.read() or b"{}")
            return answer

    def get(self, path: str) -> Object:
        return self.request("GET", path)

    def text(self, path: str, timeout: float = 5.0) -> str:
        """The answer as text, for /readyz and the like."""
        with self.open("GET", path, None, "", timeout) as response:
            return response.read().decode()

    def find(self, path: str) -> Object | None:
        """The object, or None if it does not exist."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def patch(self, path: str, body: Object, kind: str = "merge") -> Object:
        """Patches with "merge", "strategic-merge", "json" or "apply"."""
        return self.request("PATCH", path, body, f"application/{kind}-patch+{'yaml' if kind == 'apply' else 'json'}")

    def apply(self, manifest: Object) -> Object:
        """Creates the object, or changes it to what the manifest says (server-side apply, conflicts forced)."""
        path = object_path(manifest)
        return self.patch(f"{path}?fieldManager={FIELD_MANAGER}&force=true", manifest, "apply")

    def delete(self, path: str) -> None:
        """Deletes an object or, given a list's path, all of it; nothing happens if it does not exist."""
        try:
            self.request("DELETE", path)
        except ApiError as error:
            if error.code != 404:
                raise

    def watch(self, path: str, version: str = "", seconds: int = 300) -> Iterator[Object]:
        """Yields the events of a watch until the server ends it (after `seconds`). Raises as `open` does."""
        mark = "&" if "?" in path else "?"
        query = urllib.parse.urlencode(
            {"watch": "true", "resourceVersion": version, "timeoutSeconds": seconds, "allowWatchBookmarks": "true"}
        )
        with self.open("GET", f"{path}{mark}{query}", None, "", seconds + 30.0) as response:
            for line in response:
                yield json.loads(line)

    def wait(self, what: str, done: Callable[[Api], bool], seconds: float, pause: float = 0.2) -> None:
        """Polls until `done` is true; the API server may be away meanwhile.

        Raises:
            ClusterError: if it does not become true in time.
        """
        deadline = time.monotonic() + seconds
        last = ""
        while True:
            try:
                if done(self):
                    return
            except (OSError, ApiError) as error:
                last = f" ({error})"
            if time.monotonic() > deadline:
                raise ClusterError(f"{what} did not come about within {seconds:.0f} s{last}.")
            time.sleep(pause)


_PLURALS: Mapping[str, str] = {
    "networkpolicy": "networkpolicies",
    "storageclass": "storageclasses",
    "endpoints": "endpoints",
}
_WITHOUT_NAMESPACE = frozenset(
    {
        "namespace", "node", "persistentvolume", "storageclass", "clusterrole", "clusterrolebinding", "priorityclass",
        "customresourcedefinition", "runtimeclass", "ingressclass", "csidriver", "apiservice",
        "validatingadmissionpolicy", "validatingadmissionpolicybinding",
        "validatingwebhookconfiguration", "mutatingwebhookconfiguration",
    }
)  # fmt: skip


def object_path(manifest: Object) -> str:
    """The URL path of a built-in kind's object."""
    version, kind = manifest["apiVersion"], manifest["kind"].lower()
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    plural = _PLURALS.get(kind, f"{kind}es" if kind.endswith("s") else f"{kind}s")
    if kind.endswith("y") and kind not in _PLURALS and kind[-2] not in "aeiou":
        plural = f"{kind[:-1]}ies"
    metadata = manifest["metadata"]
    if kind not in _WITHOUT_NAMESPACE:
        root += f"/namespaces/{metadata.get('namespace', 'default')}"
    return f"{root}/{plural}/{metadata['name']}"

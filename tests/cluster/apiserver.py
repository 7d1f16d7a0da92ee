"""An etcd and an API server of one's own, in a temporary folder, for tests that ask nothing but the API server.

`with running_api_server() as server: server.client().request("GET", "/version")`. It takes about five seconds to
start, uses free ports of 127.0.0.1 and leaves nothing behind. The programs are those of the local cluster.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster.binaries import PARTS, folder_of
from localcluster.layout import layout_from

TOKEN = "a-token-for-tests"
START_SECONDS = 90.0


class Client:
    """One persistent connection; not for two threads at once."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> tuple[int, Any]:
        """Status code and decoded JSON of one request; text where the answer is no JSON."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": content_type, "Accept": accept}
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        for last in (False, True):
            try:
                self._connection.request(method, path, body=data, headers=headers)
                response = self._connection.getresponse()
                text = response.read().decode()
                break
            except (http.client.HTTPException, ConnectionError):
                self._connection.close()  # the server may close an idle connection; a new one is made by itself
                if last:
                    raise
        try:
            return response.status, json.loads(text)
        except json.JSONDecodeError:
            return response.status, text

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


@dataclass(frozen=True, slots=True)
class ApiServer:
    """A running API server."""

    port: int
    context: ssl.SSLContext

    def client(self) -> Client:
        """A connection of one's own."""
        return Client(self.port, self.context)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def program(part: str, name: str) -> str:
    """The path of one of the local cluster's programs. Raises FileNotFoundError, saying how to get it."""
    path = folder_of(PARTS[part], layout_from(os.environ, Path.home()).binaries) / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; `python -m localcluster binaries` brings it")
    return str(path)


@contextmanager
def running_api_server() -> Iterator[ApiServer]:
    """etcd and kube-apiserver, ready to answer; both are stopped and their folder removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="kubeformer-api-"))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for attempt in range(3):  # a port that was free may be taken before the server binds it
            try:
                yield_value = _start(folder / str(attempt), processes)
                break
            except ChildProcessError:
                _stop(processes)
                if attempt == 2:
                    raise
        yield yield_value
    finally:
        _stop(processes)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Preparation:
    """What `prepare` has laid out: the two command lines, etcd first, and where both will listen."""

    commands: dict[str, list[str]]
    port: int
    etcd_port: int


def prepare(folder: Path, tokens: str, *more: str) -> Preparation:
    """Makes the folder, with a key and the tokens, for an etcd and an API server that takes `more` arguments."""
    folder.mkdir()
    etcd_port, peer_port, port = free_ports(3)
    etcd, peer = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
    key, tokens_file = folder / "service-accounts.key", folder / "tokens.csv"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True)
    tokens_file.write_text(tokens)
    commands = {
        "etcd": [
            program("etcd", "etcd"),
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ],
        "kube-apiserver": [
            program("kubernetes", "kube-apiserver"),
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={port}",
            f"--cert-dir={folder / 'certificates'}",
            f"--token-auth-file={tokens_file}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            *more,
        ],
    }
    return Preparation(commands, port, etcd_port)


def _start(folder: Path, processes: list[subprocess.Popen[bytes]]) -> ApiServer:
    unthrottled = (
        "--enable-priority-and-fairness=false",
        "--max-requests-inflight=0",
        "--max-mutating-requests-inflight=0",
    )
    prepared = prepare(folder, f"{TOKEN},admin,admin,system:masters\n", *unthrottled)
    commands = prepared.commands
    for name, command in commands.items():
        with (folder / f"{name}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the server signs its own certificate, on the loopback device
    server = ApiServer(prepared.port, context)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for process, name in zip(processes[-2:], commands, strict=True):
            if process.poll() is not None:
                raise ChildProcessError(f"{name} ended: {(folder / f'{name}.log').read_text()[-2000:]}")
        try:
            if server.client().request("GET", "/readyz")[0] == 200:
                return server
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"the API server is not ready: {(folder / 'kube-apiserver.log').read_text()[-2000:]}")


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    while processes:  # the API server first: without etcd it hangs on its watches
        process = processes.pop()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

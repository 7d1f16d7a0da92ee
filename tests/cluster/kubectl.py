"""kubectl for tests: the real program, JSON in and out, and pods that Pod Security `restricted` lets in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]

DEADLINE = 120.0
UID = 65532


def program() -> str:
    """kubectl beside the Python that runs, or the one on PATH."""
    beside = Path(sys.executable).with_name("kubectl")
    return str(beside) if beside.exists() else shutil.which("kubectl") or "kubectl"


class CommandFailed(Exception):
    """kubectl ended with an error; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl in one namespace."""

    kubeconfig: Path
    namespace: str

    def run(self, *arguments: str, given: str = "", timeout: float = 60.0) -> str:
        """Runs kubectl and returns what it prints; raises CommandFailed if it fails."""
        command = [program(), "--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode != 0:
            raise CommandFailed(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}{done.stdout.strip()}")
        return done.stdout

    def apply(self, *manifests: Object) -> None:
        self.run("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}))

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(self.run("get", kind, name, "-o", "json"))
        return found

    def phase(self, pod: str) -> str:
        return str(self.get("pod", pod)["status"].get("phase", "Pending"))

    def wait_for_phase(self, pod: str, phase: str) -> None:
        """Waits until a pod is in a phase; says what it is in and why if that does not happen."""

        def reached() -> bool:
            return self.phase(pod) == phase

        wait_until(reached, f"pod {pod} is {phase}", lambda: self.run("describe", "pod", pod)[-2000:])

    def wait_ready(self, *pods: str) -> None:
        self.run("wait", "--for=condition=Ready", *(f"pod/{pod}" for pod in pods), "--timeout=120s", timeout=150)

    def execute(self, pod: str, *command: str, timeout: float = 60.0) -> str:
        """Runs a command in a pod; raises CommandFailed if it fails."""
        return self.run("exec", pod, "--", *command, timeout=timeout)


def wait_until(
    done: Callable[[], bool], what: str, evidence: Callable[[], str] = lambda: "", seconds: float = DEADLINE
) -> None:
    """Polls until `done`; fails with the evidence after the deadline. An error of kubectl counts as not yet."""
    deadline = time.monotonic() + seconds
    last = ""
    while True:
        try:
            if done():
                return
        except CommandFailed as error:
            last = str(error)
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {seconds:.0f} s in vain until {what}. {last}\n{evidence()}")
        time.sleep(0.3)


def python_pod(
    name: str,
    image: str,
    code: str,
    node: str = "",
    labels: Mapping[str, str] | None = None,
    claims: Mapping[str, str] | None = None,
    ports: Sequence[Object] = (),
    **spec: Any,
) -> Object:
    """A pod that runs Python code as anyone under `restricted` has to: no root, nothing writable but its claims.

    Args:
        node: the only node it may run on; "" for any.
        claims: mount path to the claim's name.
        spec: further fields of the pod's spec.
    """
    mounts = {path: f"claim-{number}" for number, path in enumerate(claims or {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name, **(labels or {})}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": UID,
                "runAsGroup": UID,
                "fsGroup": UID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "command": ["/opt/venv/bin/python", "-u", "-c", code],
                    "ports": list(ports),
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": volume, "mountPath": path} for path, volume in mounts.items()],
                }
            ],
            "volumes": [
                {"name": mounts[path], "persistentVolumeClaim": {"claimName": claim}}
                for path, claim in (claims or {}).items()
            ],
            **spec,
        },
    }


SLEEP = "import time; time.sleep(3600)"

"""An etcd and an API server that a test may kill and start again, with an audit log of every write.

`with running_control_plane() as plane:` gives free ports of 127.0.0.1, a kubeconfig, our CRDs, and a namespace for
the operator. Beside `apiserver.py`, which is for tests that only ask questions, this one is for tests of
what a client does when the ground shakes. kubelets and controllers are not there: nobody else writes.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kubeformer.cluster.credentials import find
from kubeformer.cluster.transport import Transport, Unreachable
from tests.cluster.apiserver import prepare

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 120.0
ADMIN, OPERATOR, SECOND = "admin", "operator", "second"  # users; all may do anything, the audit log tells them apart
SYSTEM = "kubeformer-system"

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}],
}


async def eventually(check: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """The first true value of `check` (plain or async), asked again until it comes. Fails with `what`."""
    deadline = time.monotonic() + seconds
    last: Any = None
    while time.monotonic() < deadline:
        try:
            last = check()
            last = await last if asyncio.iscoroutine(last) else last
            if last:
                return last
        except Unreachable as error:
            last = error
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}; last seen: {last!r}")


@dataclass
class ControlPlane:
    """Two processes and where to find them."""

    folder: Path
    commands: dict[str, list[str]]
    port: int
    etcd_port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Starts etcd or kube-apiserver, on the data and ports it had before."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(self.commands[name], stdout=log, stderr=log, cwd=self.folder)

    def kill(self, name: str) -> None:
        """kill -9."""
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self) -> None:
        """Ends both, the API server first: without etcd it hangs on its watches."""
        for name in ("kube-apiserver", "etcd"):
            process = self.processes.get(name)
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def kubeconfig(self, user: str) -> Path:
        """A kubeconfig file for one of the users."""
        path = self.folder / f"{user}.kubeconfig"
        context = {"name": "test", "context": {"cluster": "test", "user": user}}
        server = {"server": f"https://127.0.0.1:{self.port}", "insecure-skip-tls-verify": True}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": user, "user": {"token": f"token-of-{user}"}}],
            "contexts": [context],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    async def transport(self, user: str = ADMIN) -> Transport:
        """A transport for one of the users; to be entered by the caller."""
        return Transport(await find({"KUBECONFIG": str(self.kubeconfig(user))}), user_agent=f"test-{user}")

    async def ready(self) -> None:
        """Waits until the API server answers."""
        async with await self.transport() as transport:

            async def is_ready() -> bool:
                for name, process in self.processes.items():
                    if process.poll() is not None:
                        raise ChildProcessError(f"{name}: {(self.folder / f'{name}.log').read_text()[-2000:]}")
                return (await transport.request("GET", "/readyz")).status == 200

            await eventually(is_ready, "the API server is ready")

    async def restart(self, name: str) -> None:
        """kill -9, start, ready."""
        self.kill(name)
        self.start(name)
        await self.ready()

    def writes(self, user: str = OPERATOR, since: int = 0) -> list[dict[str, Any]]:
        """The audit log's entries of a user's writes, oldest first, without the first `since`."""
        entries = []
        for line in (self.folder / "audit.log").read_text().splitlines():
            entry = json.loads(line)
            if entry["user"]["username"] == user:
                entries.append(entry)
        return entries[since:]


@contextmanager
def running_control_plane() -> Iterator[ControlPlane]:
    """Starts both processes, installs the CRDs, and leaves nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="kubeformer-plane-"))
    plane: ControlPlane | None = None
    try:
        for attempt in range(3):  # a port that was free may be taken before the server binds it
            plane = _prepare(folder / str(attempt))
            plane.start("etcd")
            plane.start("kube-apiserver")
            try:
                asyncio.run(plane.ready())
                break
            except ChildProcessError:
                plane.stop()
                if attempt == 2:
                    raise
        assert plane is not None
        asyncio.run(_furnish(plane))
        yield plane
    finally:
        if plane is not None:
            plane.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(folder: Path) -> ControlPlane:
    policy, audit = folder / "audit.json", folder / "audit.log"
    prepared = prepare(
        folder,
        "".join(f"token-of-{user},{user},{user},system:masters\n" for user in (ADMIN, OPERATOR, SECOND)),
        f"--audit-policy-file={policy}",
        f"--audit-log-path={audit}",
        "--audit-log-mode=blocking",
    )
    policy.write_text(json.dumps(AUDIT_POLICY))
    audit.touch()
    return ControlPlane(folder, prepared.commands, prepared.port, prepared.etcd_port)


async def _furnish(plane: ControlPlane) -> None:
    """Our CRDs, established, and the operator's namespace."""
    async with await plane.transport() as transport:
        for path in sorted((ROOT / "crds").glob("*.yaml")):
            crd = yaml.safe_load(path.read_text())
            crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            answer = await transport.request("POST", crds, body=crd)
            assert answer.ok, answer.message
            plural, group = crd["spec"]["names"]["plural"], crd["spec"]["group"]
            version = crd["spec"]["versions"][0]["name"]

            async def served(url: str = f"/apis/{group}/{version}/{plural}") -> bool:
                return (await transport.request("GET", url)).ok

            await eventually(served, f"{plural} are served")
        await namespace(transport, SYSTEM)


async def namespace(transport: Transport, name: str) -> None:
    """Makes a namespace."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}

    async def made() -> bool:
        return (await transport.request("POST", "/api/v1/namespaces", body=body)).status in (201, 409)

    await eventually(made, f"namespace {name} is made")


def training_job(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    """The smallest TrainingJob."""
    return {
        "apiVersion": "kubeformer.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"task": {"textClassification": {}}, "data": {"uri": "pvc://mail/spam.jsonl"}, **spec},
    }

"""The operator as a process of its own, which a test may end in every way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.controlplane import OPERATOR, ROOT, ControlPlane, eventually

TOYS, PLANNERS = "tests.cluster.toy", "kubeformer.app"
QUICK: dict[str, Any] = {
    "workerImage": "registry.local/runtime:1",
    "serverImage": "registry.local/runtime:1",
    "healthPort": 0,
    "auditSeconds": 5,
    "leaderElection": {"leaseSeconds": 6, "renewDeadlineSeconds": 4, "retrySeconds": 0.5},
}


class OperatorProcess:
    """`module` is what runs: TOYS or PLANNERS."""

    def __init__(self, plane: ControlPlane, module: str, user: str = OPERATOR, **settings: Any) -> None:
        self._serial = len(list(plane.folder.glob(f"operator-{user}-*.log")))
        self.log = plane.folder / f"operator-{user}-{self._serial}.log"
        path = plane.folder / f"operator-{user}-{self._serial}.json"
        path.write_text(json.dumps({**QUICK, **settings}))
        environment = {
            **os.environ,
            "KUBECONFIG": str(plane.kubeconfig(user)),
            "KUBEFORMER_OPERATOR_SETTINGS": str(path),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    @property
    def text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text()

    async def leads(self) -> None:
        """Waits until it leads."""
        await eventually(lambda: " leads\n" in self.text or self._fail_if_ended(), "the operator leads")

    async def url(self) -> str:
        """Where its health is."""
        found = await eventually(lambda: re.search(r"health and metrics on port (\d+)", self.text), "health is served")
        return f"http://127.0.0.1:{found.group(1)}"

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def _fail_if_ended(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the operator ended with {self.process.returncode}:\n{self.text[-4000:]}")
        return False


@contextmanager
def running_operator(
    plane: ControlPlane, module: str = TOYS, user: str = OPERATOR, **settings: Any
) -> Iterator[OperatorProcess]:
    """An operator that is ended at the end, if it has not ended before."""
    operator = OperatorProcess(plane, module, user, **settings)
    try:
        yield operator
    finally:
        if operator.process.poll() is None:
            operator.kill()


def logs(folder: Path) -> str:
    """All operators' logs, for a failing test."""
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("operator-*.log")))

"""What the launcher's tests share: workers on loopback, a stand-in for torchrun, and small trainers.

Ranks of the tests are plain Python scripts without PyTorch, so that an attempt starts in a tenth of a second.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEADLINE_SECONDS = 60.0

# Takes torchrun's flags, starts the ranks in sessions of their own, and ends with 1 when one of them fails: as
# torchrun does, which hides the rank's own exit code.
TORCHRUN = """
import os, subprocess, sys
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:] if a.startswith("--") and "=" in a)
command = [a for a in sys.argv[1:] if not a.startswith("--")]
per, node = int(flags["nproc-per-node"]), int(flags["node-rank"])
ranks = []
for local in range(per):
    env = dict(os.environ, RANK=str(node * per + local), LOCAL_RANK=str(local), RUN=flags["rdzv-id"],
               WORLD_SIZE=str(int(flags["nnodes"]) * per))
    ranks.append(subprocess.Popen([sys.executable, *command], env=env, start_new_session=True))
codes = [rank.wait() for rank in ranks]
sys.exit(1 if any(codes) else 0)
"""

# A rank: says how it is doing, then does what the test wrote.
PRELUDE = """
import json, os, pathlib, signal, socket, sys, time
here = pathlib.Path(sys.argv[1])
rank, attempt = int(os.environ["RANK"]), int(os.environ["KUBEFORMER_ATTEMPT"])
connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["KUBEFORMER_SOCKET"])
def beat(phase="Training", **fields):
    connection.sendall(json.dumps({"phase": phase, "rank": rank, **fields}).encode() + b"\\n")
def until(path):
    while not (here / path).exists():
        beat()
        time.sleep(0.02)
def mark(path):
    (here / path).write_text(os.environ.get("RUN", ""))
beat()
"""


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {DEADLINE_SECONDS:.0f} s: {what}")
        time.sleep(0.02)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


@dataclass
class Worker:
    """A launcher with its own directory, like a pod."""

    process: subprocess.Popen[bytes]
    port: int
    directory: Path

    def get(self, path: str) -> str:
        """GET from the launcher."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
            body = response.read()
            assert isinstance(body, bytes)
            return body.decode()

    def progress(self) -> dict[str, Any]:
        """GET /progress; empty while nobody listens yet."""
        try:
            value = json.loads(self.get("/progress"))
        except OSError:
            return {}
        assert isinstance(value, dict)
        return value

    def wait(self) -> int:
        """The launcher's exit code."""
        return self.process.wait(DEADLINE_SECONDS)

    def stop(self) -> None:
        """SIGTERM, as from kubelet."""
        self.process.send_signal(signal.SIGTERM)

    def termination_message(self) -> dict[str, Any]:
        """What kubelet would read."""
        value = json.loads((self.directory / "termination").read_text())
        assert isinstance(value, dict)
        return value


@dataclass
class Site:
    """A job's workers on loopback. Everything that was started is gone after `close`."""

    directory: Path
    trainer: str
    nodes: int = 1
    processes: int = 1
    settings: dict[str, Any] = field(default_factory=lambda: {"uid": "u1", "recovery": {"maxRestarts": 3}})
    group_port: int = field(default_factory=free_port)
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.directory / "trainer.py").write_text(PRELUDE + self.trainer)
        (self.directory / "torchrun.py").write_text(TORCHRUN)
        (self.directory / "settings.json").write_text(json.dumps(self.settings))

    def start(self, node: int = 0) -> Worker:
        """Start worker `node`."""
        own = self.directory / f"w{node}-{len(self.workers)}"
        own.mkdir()
        port = self.group_port if node == 0 else free_port()
        environment = {
            **os.environ,
            "KUBEFORMER_SETTINGS": str(self.directory / "settings.json"),
            "KUBEFORMER_SOCKET": str(own / "s"),
            "PET_NNODES": str(self.nodes),
            "PET_NPROC_PER_NODE": str(self.processes),
            "JOB_COMPLETION_INDEX": str(node),
            "PET_MASTER_ADDR": "127.0.0.1",
        }
        command = [sys.executable, "-m", "kubeformer_runtime.launcher", f"--listen=127.0.0.1:{port}"]
        command += [f"--group-port={self.group_port}", f"--termination-log={own / 'termination'}"]
        command += [f"--torchrun={sys.executable} {self.directory / 'torchrun.py'}"]
        command += ["--", str(self.directory / "trainer.py"), str(self.directory)]
        worker = Worker(subprocess.Popen(command, env=environment), port, own)
        self.workers.append(worker)
        return worker

    def start_all(self) -> list[Worker]:
        """Start every worker."""
        return [self.start(node) for node in range(self.nodes)]

    def mark(self, name: str) -> None:
        """Make a file that ranks wait for."""
        (self.directory / name).touch()

    def has(self, *names: str) -> bool:
        """Whether ranks have made these files."""
        return all((self.directory / name).exists() for name in names)

    def close(self) -> None:
        """Kill the launchers; their ranks end with them."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.stop()
                worker.stop()
                try:
                    worker.process.wait(10)
                except subprocess.TimeoutExpired:
                    worker.process.kill()
                    worker.process.wait()

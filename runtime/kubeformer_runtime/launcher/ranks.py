"""Ranks: the processes that train. Starts them (through torchrun where there are several), signals and kills
them with everything they started, and reaps what is left over, as PID 1 must.

torchrun gives every rank a session of its own, so a process group does not reach them: processes are found
by their parents in /proc. The launcher is a child subreaper, so orphans become its children.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubeformer_runtime.launcher import constants

_PR_SET_CHILD_SUBREAPER = 36
_RESERVED = ("PET_", "TORCHELASTIC_")


@dataclass(frozen=True, slots=True)
class Plan:
    """Who this worker is among the workers, and what it starts."""

    nodes: int
    node: int
    processes: int
    master_address: str
    master_port: int
    trainer: tuple[str, ...]  # arguments for Python, or for torchrun: -m MODULE, or SCRIPT [ARGUMENT...]
    torchrun: tuple[str, ...] = (sys.executable, "-m", "torch.distributed.run")

    @property
    def world_size(self) -> int:
        """Ranks of all workers."""
        return self.nodes * self.processes

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], trainer: Sequence[str], torchrun: Sequence[str] | None = None
    ) -> "Plan":
        """Read torchrun's PET_* variables and the Job's index. Raises ValueError with the variable's name."""
        nodes = _number(environment, "PET_NNODES", "1", least=1)
        index = environment.get("PET_NODE_RANK") or environment.get(constants.ENV_JOB_COMPLETION_INDEX) or "0"
        node = _number({"PET_NODE_RANK": index}, "PET_NODE_RANK", "0", least=0)
        if node >= nodes:
            raise ValueError(f"PET_NODE_RANK is {node}, but PET_NNODES is {nodes}")
        address = environment.get("PET_MASTER_ADDR", "127.0.0.1" if nodes == 1 else "")
        if not address:
            raise ValueError(f"PET_MASTER_ADDR is not set, but PET_NNODES is {nodes}")
        return cls(
            nodes=nodes,
            node=node,
            processes=_number(environment, "PET_NPROC_PER_NODE", "1", least=1),
            master_address=address,
            master_port=_number(environment, "PET_MASTER_PORT", str(constants.PORT_RENDEZVOUS), least=1),
            trainer=tuple(trainer),
            torchrun=tuple(torchrun) if torchrun else (sys.executable, "-m", "torch.distributed.run"),
        )

    def command(self, run_id: str) -> list[str]:
        """What to execute. One rank needs no rendezvous, and so no torchrun."""
        if self.world_size == 1:
            return [sys.executable, *self.trainer]
        return [
            *self.torchrun,
            f"--nnodes={self.nodes}",
            f"--node-rank={self.node}",
            f"--nproc-per-node={self.processes}",
            f"--master-addr={self.master_address}",
            f"--master-port={self.master_port}",
            "--max-restarts=0",  # attempts are agreed on by the launchers
            f"--rdzv-id={run_id}",
            *self.trainer,
        ]

    def environment(self, base: Mapping[str, str], socket_path: str, attempt: int) -> dict[str, str]:
        """The ranks' environment: torchrun's own variables do not reach them, except where there is no torchrun."""
        result = {name: value for name, value in base.items() if not name.startswith(_RESERVED)}
        result[constants.ENV_SOCKET] = socket_path
        result[constants.ENV_ATTEMPT] = str(attempt)
        result.setdefault("TMPDIR", os.path.dirname(socket_path))  # torchrun wants one; the image's own is read-only
        if self.world_size == 1:
            result |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
            result |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.master_port)}
        return result


def _number(environment: Mapping[str, str], name: str, default: str, *, least: int) -> int:
    text = environment.get(name) or default
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} is {text!r}: give a whole number of at least {least}")
    return int(text)


class Ranks:
    """The processes of one attempt at a time."""

    def __init__(self) -> None:
        self._runner: subprocess.Popen[bytes] | None = None
        self._through_torchrun = False

    @property
    def running(self) -> bool:
        """Whether an attempt was started and has not been collected."""
        return self._runner is not None

    def start(self, command: Sequence[str], environment: Mapping[str, str], *, through_torchrun: bool) -> None:
        """Start an attempt. `through_torchrun`: the ranks are children of what is started."""
        self._through_torchrun = through_torchrun
        self._runner = subprocess.Popen(
            list(command), env=dict(environment), stdin=subprocess.DEVNULL, start_new_session=True
        )

    def reap(self) -> int | None:
        """Collect everything that ended. The exit code of the attempt if it is over (negative: a signal)."""
        code: int | None = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if self._runner is not None and pid == self._runner.pid:
                code = os.waitstatus_to_exitcode(status)
                self._runner.returncode = code  # waitpid(-1) took it from Popen
                self._runner = None
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every rank: not to torchrun, which would shut them down in its own way."""
        if self._runner is None:
            return
        ranks = _children(self._runner.pid) if self._through_torchrun else []
        for pid in ranks or [self._runner.pid]:
            _kill(pid, number)

    def kill(self) -> None:
        """Kill the attempt and everything that it started. Returns when no such process is left."""
        while descendants := _descendants(os.getpid()):
            for pid in descendants:
                _kill(pid, signal.SIGKILL)
            time.sleep(0.01)
            self.reap()
        self.reap()


def become_subreaper() -> None:
    """Have orphaned descendants become children of this process, as they do for PID 1."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _parents() -> dict[int, int]:
    result = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue  # ended meanwhile
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state != "Z":
            result[int(entry.name)] = int(parent)
    return result


def _descendants(ancestor: int) -> list[int]:
    parents = _parents()
    found, frontier = [], {ancestor}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += sorted(frontier)
    return found


def _children(parent: int) -> list[int]:
    return sorted(pid for pid, its_parent in _parents().items() if its_parent == parent)


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass

"""Starts, finds and ends the processes of the cluster.

A process is known by its pid **and** its start time and the machine's boot, so that a number which was given to a
stranger meanwhile is never taken for ours; signals go through a pidfd, which cannot be handed on. Each process also
carries its cluster's folder in its environment (`KUBEFORMER_CLUSTER`), so that one whose record was never written,
because we were killed between starting it and writing, is found all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from localcluster.components import Command
from localcluster.layout import Layout

CLUSTER_MARK = "KUBEFORMER_CLUSTER"
COMPONENT_MARK = "KUBEFORMER_COMPONENT"
LARGEST_LOG = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """A process that was started, and how to start it again.

    Attributes:
        start: the kernel's start time of the process, in clock ticks since boot.
        boot: the machine's boot, a UUID.
        wanted: whether the supervisor should start it again when it is gone.
    """

    name: str
    pid: int
    start: int
    boot: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    log: str
    wanted: bool


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """The start time of a process that runs; None for one that is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return parse_start_time(text)


def parse_start_time(stat: str) -> int | None:
    """Field 22 of /proc/PID/stat. The name in field 2 may hold spaces and parentheses; fields are counted behind it."""
    fields = stat[stat.rfind(")") + 2 :].split()
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    return int(fields[19])


def started_at(record: Record) -> float:
    """When a process of this boot was started, in seconds since 1970."""
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + record.start / os.sysconf("SC_CLK_TCK")


def signal_process(pid: int, start: int, number: int) -> bool:
    """Sends a signal to exactly this process. False if it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Asked after the handle was opened: the handle now holds the process with this start time, or the wrong one.
        if start_time(pid) != start:
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def wait_gone(processes: Sequence[tuple[int, int]], seconds: float) -> list[tuple[int, int]]:
    """Waits until none of the (pid, start time) runs; returns those that still do when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        left = [(pid, start) for pid, start in processes if start_time(pid) == start]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.03)


def end_all(processes: Sequence[tuple[int, int]], seconds: float) -> None:
    """Ends processes: SIGTERM, and SIGKILL for those that are still there after `seconds`."""
    for pid, start in processes:
        signal_process(pid, start, signal.SIGTERM)
    left = wait_gone(processes, seconds)
    for pid, start in left:
        signal_process(pid, start, signal.SIGKILL)
    wait_gone(left, 10)


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it is gone."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (part.partition(b"=") for part in raw.split(b"\0") if part)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


def argv_of(pid: int) -> tuple[str, ...]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(part.decode(errors="replace") for part in raw.split(b"\0")[:-1])


AGENTS = frozenset({"containerd", "etcd", "kube-apiserver", "kubelet"})


def other_clusters(cluster: Path) -> list[str]:
    """The folders of other clusters that run on this machine. Devices, rules and control groups have one name for all
    clusters, so there can be one at a time, and ending one must leave those of another alone."""
    found = set()
    for pid in pids():
        argv = argv_of(pid)
        if argv and Path(argv[0]).name in AGENTS and start_time(pid) is not None:
            found.add(environment_of(pid).get(CLUSTER_MARK, str(cluster)))
    return sorted(found - {str(cluster)})


def same_program(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two commands do the same. For our own modules, any Python that `up` was called with is as good."""
    if not one or not other:
        return False
    pythons = all(Path(argv[0]).name.startswith("python") for argv in (one, other))
    return one[1:] == other[1:] and (pythons or one[0] == other[0])


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one cluster. What it knows lies in files, so any process may ask and act.

    Attributes:
        cluster: the cluster's folder, the mark of all its processes.
        records: the folder of the records.
        logs: the folder of the logs.
    """

    cluster: Path
    records: Path
    logs: Path

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        self.records.mkdir(parents=True, exist_ok=True)
        with open(self.records / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.records.glob("*.json"))

    def record(self, name: str) -> Record | None:
        try:
            values = json.loads((self.records / f"{name}.json").read_text())
            return Record(**{**values, "argv": tuple(values["argv"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _write(self, record: Record) -> None:
        path = self.records / f"{record.name}.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(record), indent=1))
        temporary.replace(path)

    def alive(self, name: str) -> Record | None:
        """The record of a process that runs now, or None."""
        record = self.record(name)
        if record is None or record.boot != boot_id() or start_time(record.pid) != record.start:
            return None
        return record

    def marked(self) -> list[tuple[int, int]]:
        """(pid, start time) of every process that carries this cluster's mark: ours, and the shims they started."""
        found = []
        for pid in pids():
            start = start_time(pid)
            if start is not None and environment_of(pid).get(CLUSTER_MARK) == str(self.cluster):
                found.append((pid, start))
        return found

    def _orphans(self, argv: tuple[str, ...]) -> list[tuple[int, int]]:
        return [(pid, start) for pid, start in self.marked() if same_program(argv_of(pid), argv)]

    def start(self, name: str, command: Command) -> Record:
        """Starts the process, or leaves it alone when it runs with the same command; with another, it is replaced."""
        with self._locked(name):
            running = self.alive(name)
            environment = dict(command.environment)
            if running:
                same = same_program(running.argv, command.argv) and dict(running.environment) == environment
                if same:
                    if not running.wanted:
                        self._write(replace(running, wanted=True))
                    return running
                end_all([(running.pid, running.start)], 3)
            end_all(self._orphans(command.argv), 5)
            return self._spawn(name, command.argv, environment, command.directory)

    def _spawn(self, name: str, argv: tuple[str, ...], environment: Mapping[str, str], directory: str) -> Record:
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name}.log"
        if log.exists() and log.stat().st_size > LARGEST_LOG:
            log.replace(log.with_suffix(".log.1"))
        full = {
            "PATH": os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin",
            "HOME": os.environ.get("HOME", "/root"),
            **environment,
            CLUSTER_MARK: str(self.cluster),
            COMPONENT_MARK: name,
        }
        with open(log, "ab") as out:
            out.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%S')} start: {' '.join(argv)}\n".encode())
            out.flush()
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=full, cwd=directory, start_new_session=True
            )
        # A child that is gone already has no start time; it is recorded as gone.
        start = start_time(child.pid)
        record = Record(
            name, child.pid, -1 if start is None else start, boot_id(), argv, environment, directory, str(log), True
        )
        self._write(record)
        # The child outlives us on purpose; without this, Python warns that it was not waited for.
        child.returncode = 0
        return record

    def revive(self, name: str) -> Record | None:
        """Starts a process again from its record, if it should run and does not. Returns the new record if it did."""
        with self._locked(name):
            record = self.record(name)
            if record is None or not record.wanted or self.alive(name):
                return None
            return self._spawn(name, record.argv, record.environment, record.directory)

    def want(self, name: str, wanted: bool) -> None:
        """Says whether the supervisor should start the process again."""
        with self._locked(name):
            record = self.record(name)
            if record and record.wanted != wanted:
                self._write(replace(record, wanted=wanted))

    def kill(self, name: str) -> bool:
        """`kill -9`. The supervisor starts it again if it is wanted. False if it did not run."""
        record = self.alive(name)
        return record is not None and signal_process(record.pid, record.start, signal.SIGKILL)

    def stop(self, name: str, seconds: float) -> None:
        """Ends the process for good: no supervisor starts it again."""
        with self._locked(name):
            record = self.record(name)
            if record is None:
                return
            self._write(replace(record, wanted=False))
            if self.alive(name):
                end_all([(record.pid, record.start)], seconds)

    def forget(self) -> None:
        """Removes the records of processes that are gone."""
        for name in self.names():
            if not self.alive(name):
                (self.records / f"{name}.json").unlink(missing_ok=True)


def processes_of(layout: Layout) -> Processes:
    return Processes(layout.cluster, layout.records, layout.logs)


def reap() -> None:
    """Collects children that ended, so that they do not stay zombies."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass

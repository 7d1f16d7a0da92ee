"""A peer's server as a process: started on a free port, awaited, put to rest while others are measured, ended for sure.

Several servers stay loaded at once, so that repeats can go round between them; all but one are stopped (SIGSTOP), so
that whoever polls or spins while idle does not take a core from the one that is measured.
"""

import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

POLL_SECONDS = 0.05
END_SECONDS = 10.0  # between SIGTERM and SIGKILL


class PeerError(Exception):
    """A server that did not come up, or went away."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one server for one model. `{port}` in a part of the command becomes the port."""

    name: str  # of the row in tables
    command: tuple[str, ...]
    environment: Mapping[str, str]
    model: str  # what requests call it
    health: str = "/health"
    extra: Mapping[str, object] = field(default_factory=dict)  # fields of every request: how to ignore the end token
    settings: str = ""  # what a reader has to know to start it the same way
    weights: str = "bf16"
    text_per_token: bool = True  # each token comes as a chunk of its own


@dataclass(slots=True)
class Server:
    """One running server."""

    launch: Launch
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    began: float  # time.monotonic() when the process was started
    ready_seconds: float = 0.0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        """To the server and all its children."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def rest(self) -> None:
        """Stand still: takes no processor time until `wake`."""
        self.signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Go on."""
        self.signal(signal.SIGCONT)

    def tail(self) -> str:
        """The last lines it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])

    def wait_ready(self, seconds: float) -> None:
        """Raises PeerError where it is not healthy in time or ends."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise PeerError(f"{self.launch.name} ended with code {self.process.returncode}\n{self.tail()}")
            try:
                with urllib.request.urlopen(self.url + self.launch.health, timeout=5) as answer:
                    if answer.status == 200:
                        self.ready_seconds = time.monotonic() - self.began
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(POLL_SECONDS)
        raise PeerError(f"{self.launch.name} was not ready within {seconds:.0f} s\n{self.tail()}")

    def end(self) -> None:
        """No process of it is left afterwards."""
        self.wake()
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        self.signal(signal.SIGKILL)  # also children that outlive their parent: the group is theirs
        self.process.wait()


def _die_with_parent() -> None:
    """In the child: a bench that is killed outright takes its servers with it (prctl, PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def start(launch: Launch, folder: Path) -> Server:
    """Begin; `wait_ready` is the caller's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{launch.name.replace(' ', '-').replace(',', '').replace('/', '-')}-{port}.log"
    command = [part.replace("{port}", str(port)) for part in launch.command]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **launch.environment},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    return Server(launch, port, process, log, time.monotonic())


@contextmanager
def running(launch: Launch, folder: Path, seconds: float = 900.0) -> Iterator[Server]:
    """A ready server, ended on the way out whatever happens."""
    server = start(launch, folder)
    try:
        server.wait_ready(seconds)
        yield server
    finally:
        server.end()

"""Supervisor: the launcher's loop. Starts an attempt when the group says so, listens to its ranks, ends it on a
hang, a fault or a signal, and says with which code the worker ends.

One thread does all of this; HTTP threads only read the Board. The loop goes round at least five times a
second and blocks nowhere else, so that a signal, a death or a heartbeat is never left waiting.
"""

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kubeformer_runtime.launcher import constants
from kubeformer_runtime.launcher.group import Order, Report, State
from kubeformer_runtime.launcher.ranks import Plan, Ranks
from kubeformer_runtime.launcher.record import Record, termination_message
from kubeformer_runtime.launcher.web import Board

_TICK_SECONDS = 0.2
_STACK_DUMP_SECONDS = 2.0  # what the ranks get to write their stacks before they are killed
_DRAIN_SECONDS = 60.0  # what ranks get for their checkpoint when another worker was asked to stop
_MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """recovery.* of the job."""

    max_restarts: int
    hang_timeout_seconds: float
    may_be_silent: bool = False  # a custom command need not report; once it has, silence counts


class Ears:
    """The Unix socket on which ranks send their heartbeats, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._buffers: dict[socket.socket, bytearray] = {}

    def wake_on(self, descriptor: int) -> None:
        """Also return from `listen` when this descriptor is readable (signals write to it)."""
        self._selector.register(descriptor, selectors.EVENT_READ, data=descriptor)

    def listen(self, timeout: float) -> list[bytes]:
        """Whole lines that came in, after at most `timeout` seconds."""
        lines: list[bytes] = []
        for key, _ in self._selector.select(timeout):
            if isinstance(key.data, int):
                os.read(key.data, 4096)
            elif key.fileobj is self._listener:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._buffers[connection] = bytearray()
                self._selector.register(connection, selectors.EVENT_READ)
            elif isinstance(key.fileobj, socket.socket):
                lines += self._read(key.fileobj)
        return lines

    def rest(self) -> list[bytes]:
        """Everything that is still in the sockets, e.g. the last words of ranks that have ended."""
        lines: list[bytes] = []
        while self._selector.select(0):
            before = len(self._buffers), sum(map(len, self._buffers.values()))
            new = self.listen(0)
            lines += new
            if not new and before == (len(self._buffers), sum(map(len, self._buffers.values()))):
                break
        return lines

    def close(self) -> None:
        """Stop listening."""
        for connection in self._buffers:
            connection.close()
        self._buffers.clear()
        self._listener.close()
        self._selector.close()

    def _read(self, connection: socket.socket) -> list[bytes]:
        buffer = self._buffers[connection]
        try:
            chunk = connection.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            chunk = b""
        if not chunk or len(buffer) > _MAX_LINE_BYTES:
            self._selector.unregister(connection)
            del self._buffers[connection]
            connection.close()
            return []
        buffer += chunk
        *lines, rest = bytes(buffer).split(b"\n")
        buffer[:] = rest
        return lines


class Supervisor:
    """See the module's docstring. `ask` puts a report to the group and gives its order, None while there is none."""

    def __init__(
        self,
        *,
        plan: Plan,
        limits: Limits,
        run_id: str,
        boot: str,
        socket_path: Path,
        termination_path: Path,
        ask: Callable[[Report], Order | None],
        unreachable_seconds: Callable[[], float],
        log: Callable[[str], None],
    ) -> None:
        self._plan, self._limits, self._run_id, self._boot = plan, limits, run_id, boot
        self._socket_path, self._termination_path = socket_path, termination_path
        self._ask, self._unreachable_seconds, self._log = ask, unreachable_seconds, log
        self._ears = Ears(socket_path)
        self._ranks = Ranks()
        self.record = Record(time.time())
        self.board = Board(self.record.progress())
        self._state: State = "Idle"
        self._attempt = 0  # the group's number
        self._starts = 0  # how often this worker has started ranks
        self._began = 0.0
        self._terminated = 0  # SIGTERMs received
        self._signalled = 0  # of them passed on to the ranks
        self._killing: tuple[float, State, str] | None = None  # when, the state after it, why
        self._exit: int | None = None
        self._said = ""

    def terminate(self, *_: object) -> None:
        """A signal handler: stop after a checkpoint; the second time: at once."""
        self._terminated += 1

    def wake_on(self, descriptor: int) -> None:
        """See Ears."""
        self._ears.wake_on(descriptor)

    def run(self) -> int:
        """Until the worker is done; the exit code."""
        try:
            while self._exit is None:
                self._hear(self._ears.listen(_TICK_SECONDS))
                self._tick(time.monotonic())
                self._show()
            return self._exit
        finally:
            self._ranks.kill()
            self._show()
            self.write_termination_message()

    def write_termination_message(self) -> None:
        """For kubelet, and so for the operator when this pod is gone."""
        try:
            self._termination_path.write_bytes(termination_message(self.record.progress()))
        except OSError as error:
            self._log(f"cannot write the termination message: {error}")

    def _show(self) -> None:
        self.board.progress = self.record.progress()
        self.board.beats = self.record.beats
        self.board.tick = time.monotonic()

    def _hear(self, lines: list[bytes]) -> None:
        for line in lines:
            if not self.record.hear(line, now=time.time(), monotonic=time.monotonic()):
                self._log(f"not a heartbeat: {line[:200]!r}")

    def _tick(self, now: float) -> None:
        code = self._ranks.reap()
        if code is not None:
            self._ended(code)
        self._pass_on_signals(now)
        self._watch_for_hang(now)
        if self._killing is not None and now >= self._killing[0]:
            self._kill()
        if self._exit is None:
            order = self._ask(self._report())
            if order is not None:
                self._obey(order, now)
            elif self._state == "Succeeded" and self._unreachable_seconds() > 600:
                self._exit = constants.SUCCEEDED  # worker 0 is long gone; this one's part is done

    def _report(self) -> Report:
        return Report(self._plan.node, self._boot, self._attempt, self._state)

    def _obey(self, order: Order, now: float) -> None:
        if order.action == "Run" and not self._ranks.running and not self._terminated:
            self._start(order.attempt, now)
        elif order.action == "Stop" and self._ranks.running:
            self._killing = (now, "Idle", "another worker's ranks ended")
        elif order.action == "Drain" and self._ranks.running and self._killing is None:
            self._ranks.signal(signal.SIGTERM)
            self._killing = (now + _DRAIN_SECONDS, "Idle", "another worker was asked to stop")
        elif order.action == "Finish":
            self.record.set("Succeeded")
            self._exit = constants.SUCCEEDED
        elif order.action == "GiveUp":
            message = f"the ranks failed more than {self._limits.max_restarts} times; {self._said or 'see the logs'}"
            self.record.set("Failed", {"reason": constants.REASON_RESTARTS_EXHAUSTED, "message": message})
            self._log(message)
            self._exit = constants.FAULT
        elif order.waiting_for and not self._ranks.running:
            self._say("waiting for worker " + ", ".join(map(str, order.waiting_for)))

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._log(text)

    def _start(self, attempt: int, now: float) -> None:
        self._attempt, self._state, self._began = attempt, "Running", now
        self._starts += 1
        self._killing = None
        self.record.begin(self._starts)
        command = self._plan.command(f"{self._run_id}-{attempt}")
        environment = self._plan.environment(os.environ, str(self._socket_path), self._starts)
        self._said = ""
        self._log(f"attempt {attempt}: {' '.join(command)}")
        try:
            self._ranks.start(command, environment, through_torchrun=self._plan.world_size > 1)
        except OSError as error:
            self._state, self._said = "Failed", f"the ranks could not be started: {error}"
            self._log(self._said)

    def _pass_on_signals(self, now: float) -> None:
        if self._terminated == self._signalled:
            return
        self._signalled = self._terminated
        self.write_termination_message()
        if not self._ranks.running:
            self._log("asked to stop")
            stopped = self._state != "Succeeded"
            if stopped:
                self.record.set("Stopped")
            self._exit = constants.STOPPED if stopped else constants.SUCCEEDED
        elif self._terminated == 1:
            self._log("asked to stop: the ranks get SIGTERM and time for a checkpoint")
            self._state = "Stopping"
            self._ranks.signal(signal.SIGTERM)
        else:
            self._killing = (now, "Stopped", "asked to stop twice")

    def _watch_for_hang(self, now: float) -> None:
        if not self._ranks.running or self._killing is not None:
            return
        if self._limits.may_be_silent and self.record.phase in ("Starting", "Preparing"):
            return
        silent = self.record.silent_seconds(now, self._began)
        if silent >= self._limits.hang_timeout_seconds:
            self._said = f"no heartbeat for {silent:.0f} s (recovery.hangTimeoutSeconds)"
            self._log(self._said + ": dumping stacks, then killing the ranks")
            self._ranks.signal(signal.SIGUSR1)
            self._killing = (now + _STACK_DUMP_SECONDS, "Failed", self._said)

    def _kill(self) -> None:
        assert self._killing is not None
        _, state, why = self._killing
        self._killing = None
        self._log(f"killing the ranks: {why}")
        self._ranks.kill()
        self._hear(self._ears.rest())
        self._settle("Stopped" if self._terminated else state)

    def _ended(self, code: int) -> None:
        """The attempt ended by itself: as a success, for good, voluntarily, or as a fault."""
        self._ranks.kill()  # what it left behind
        self._hear(self._ears.rest())
        killing, self._killing = self._killing, None
        if code == 0:
            self._settle("Succeeded")
        elif self.record.failure is not None or code == constants.INVALID:
            failure = self.record.failure or {
                "reason": constants.REASON_SETTINGS_INVALID,
                "message": "the trainer refused its settings; its log says why",
            }
            self.record.set("Failed", failure)
            self._log(f"{failure.get('reason')}: {failure.get('message')}")
            self._exit = constants.INVALID
        elif self._terminated or code == constants.STOPPED or self.record.phase == "Stopped":
            self._settle("Stopped")
        elif killing is not None:
            self._settle(killing[1])
        else:
            self._said = f"the ranks ended with exit code {code}" if code > 0 else f"the ranks died of {_name(-code)}"
            self._log(self._said)
            self._settle("Failed")

    def _settle(self, state: State) -> None:
        self._state = state
        if state == "Succeeded":
            self.record.set("Succeeded")
        elif state == "Stopped" and self._terminated:
            self.record.set("Stopped")
            self._exit = constants.STOPPED
        else:
            self.record.set("Starting")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

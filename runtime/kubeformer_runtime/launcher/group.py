"""Coordinator: how the launchers of all workers agree on a common attempt. Pure; worker 0 holds it.

Collectives need all ranks, so when one rank dies, all ranks of all workers start again, together. Every
launcher reports its state a few times a second; what it hears back is what to do. The rules:

- An attempt begins when all workers have reported and none has ranks running.
- It is over when a worker reports that its ranks failed or stopped, or when a worker was replaced (it reports
  with another boot id). Then workers whose ranks still run are told to stop them.
- It ends well when the ranks of all workers have succeeded.
- Faults count against the limit; voluntary stops and replaced workers never do.

A coordinator that was itself replaced knows nothing, and needs nothing: it hears the attempt numbers of the
others, has them stop, and goes on with the next number. No message has to arrive exactly once or in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["Idle", "Running", "Stopping", "Succeeded", "Failed", "Stopped"]
Action = Literal["Wait", "Run", "Stop", "Drain", "Finish", "GiveUp"]

_STATES: tuple[State, ...] = ("Idle", "Running", "Stopping", "Succeeded", "Failed", "Stopped")
_ACTIONS: tuple[Action, ...] = ("Wait", "Run", "Stop", "Drain", "Finish", "GiveUp")
_ACTIVE: frozenset[State] = frozenset({"Running", "Stopping"})

LONG_ATTEMPT_SECONDS = 60.0  # an attempt this long was no start-up fault: back-off begins anew
MAX_BACKOFF_SECONDS = 60.0
VOLUNTARY_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a launcher says of itself."""

    node: int
    boot: str  # of this launcher process; another one means that the worker was replaced
    attempt: int  # the last one it started ranks for; 0: none yet
    state: State

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        return {"node": self.node, "boot": self.boot, "attempt": self.attempt, "state": self.state}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Report":
        """From the wire. Raises KeyError, TypeError or ValueError for anything else than a report."""
        return cls(
            node=int(value["node"]),
            boot=str(value["boot"]),
            attempt=int(value["attempt"]),
            state=_STATES[_STATES.index(value["state"])],
        )


@dataclass(frozen=True, slots=True)
class Order:
    """What a launcher is to do: run attempt `attempt`, stop at once, drain (SIGTERM, let it finish), ..."""

    action: Action
    attempt: int
    waiting_for: tuple[int, ...] = ()  # workers that have to report before the next attempt

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        return {"action": self.action, "attempt": self.attempt, "waitingFor": list(self.waiting_for)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Order":
        """From the wire; raises like Report.from_json."""
        return cls(
            action=_ACTIONS[_ACTIONS.index(value["action"])],
            attempt=int(value["attempt"]),
            waiting_for=tuple(int(node) for node in value["waitingFor"]),
        )


def backoff_seconds(streak: int) -> float:
    """Pause before the attempt after `streak` short-lived faults in succession: 0, 1, 2, 4 ... 60 seconds."""
    return 0.0 if streak <= 1 else min(MAX_BACKOFF_SECONDS, 2.0 ** min(streak - 2, 10))


class Coordinator:
    """See the module's docstring. `hear` is all there is; `now` is any clock that only goes forward."""

    def __init__(self, nodes: int, max_restarts: int) -> None:
        self._nodes = nodes
        self._max_restarts = max_restarts
        self._reports: dict[int, Report] = {}
        self._attempt = 0
        self._running = False  # the attempt has begun and is not over
        self._voluntary = False  # a worker of this attempt was asked to stop
        self._graceful = False  # how running ranks are stopped now that it is over
        self._began = 0.0
        self._not_before = 0.0
        self._streak = 0
        self._told_end: set[int] = set()
        self.faults = 0

    def hear(self, report: Report, now: float) -> Order:
        """Take a report, say what to do."""
        if not 0 <= report.node < self._nodes:
            raise ValueError(f"worker {report.node} reports to a group of {self._nodes}")
        before = self._reports.get(report.node)
        self._reports[report.node] = report
        if self._running:
            self._watch(before, report, now)
        if not self._running and not self._over:
            self._begin_if_all_are_idle(now)
        order = self._order(report)
        if order.action in ("Finish", "GiveUp"):
            self._told_end.add(report.node)
        return order

    @property
    def all_told(self) -> bool:
        """Whether every worker has heard that the job is over (so that worker 0 may go)."""
        return len(self._told_end) == self._nodes

    @property
    def ended(self) -> bool:
        """Whether the job is over, well or not."""
        return self._over

    @property
    def _succeeded(self) -> bool:
        return self._running and all(
            node in self._reports and self._reports[node].state == "Succeeded"
            and self._reports[node].attempt == self._attempt
            for node in range(self._nodes)
        )  # fmt: skip

    @property
    def _given_up(self) -> bool:
        return self.faults > self._max_restarts

    @property
    def _over(self) -> bool:
        return self._succeeded or self._given_up

    def _watch(self, before: Report | None, report: Report, now: float) -> None:
        replaced = before is not None and before.boot != report.boot
        # A report of an earlier attempt comes from a worker that has not heard of this one yet.
        if replaced or report.attempt > self._attempt:
            self._end(now, fault=False, graceful=False)
        elif report.attempt == self._attempt:
            if report.state == "Stopping":
                self._voluntary = True
            elif report.state == "Stopped":
                self._end(now, fault=False, graceful=True)
            elif report.state == "Failed":
                self._end(now, fault=not self._voluntary, graceful=self._voluntary)
            elif report.state == "Idle":  # it stopped its ranks for an order of an earlier coordinator
                self._end(now, fault=False, graceful=False)

    def _end(self, now: float, *, fault: bool, graceful: bool) -> None:
        self._running = False
        self._graceful = graceful
        if not fault:
            self._not_before = now + VOLUNTARY_PAUSE_SECONDS
            return
        self.faults += 1
        self._streak = 1 if now - self._began >= LONG_ATTEMPT_SECONDS else self._streak + 1
        self._not_before = now + backoff_seconds(self._streak)

    def _missing(self) -> tuple[int, ...]:
        return tuple(
            node
            for node in range(self._nodes)
            if node not in self._reports or self._reports[node].state in _ACTIVE
        )  # fmt: skip

    def _begin_if_all_are_idle(self, now: float) -> None:
        if self._missing() or now < self._not_before:
            return
        self._attempt = max(self._attempt, *(report.attempt for report in self._reports.values())) + 1
        self._running, self._voluntary, self._graceful, self._began = True, False, False, now

    def _order(self, report: Report) -> Order:
        if self._given_up:
            return Order("GiveUp", self._attempt)
        if self._succeeded:
            return Order("Finish", self._attempt)
        if self._running:
            if report.attempt < self._attempt:
                # It still runs an earlier attempt where its order to run crossed with another worker's end.
                return Order("Stop" if report.state in _ACTIVE else "Run", self._attempt)
            return Order("Wait", self._attempt)
        if report.state in _ACTIVE:
            return Order("Drain" if self._graceful else "Stop", self._attempt, self._missing())
        return Order("Wait", self._attempt, self._missing())

"""What the loop needs from outside, as protocols, and how a write can end.

`cluster` implements them against the API server; tests implement them in memory. Failures that the loop must tell apart
are values (`Refused`), not exceptions: a plan that the API server refuses is news for the user, not a crash.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from kubeformer.kit.child import Json
from kubeformer.kit.plan import Delete, Event
from kubeformer.kit.view import Key


class Why(StrEnum):
    """Why a write did not happen."""

    CONFLICT = "Conflict"  # a precondition (uid, resourceVersion) no longer holds: look again
    EXISTS = "AlreadyExists"  # a create found the name taken
    FORBIDDEN = "Forbidden"  # RBAC, quota, admission, or a namespace that is going away
    INVALID = "Invalid"  # the API server refuses the object itself
    NOT_FOUND = "NotFound"  # of the object, its namespace, or its kind
    UNAVAILABLE = "Unavailable"  # nobody knows whether it happened: time-outs, resets, 429, 5xx
    FENCED = "Fenced"  # this process is not the leader, so nothing was sent

    @property
    def lasting(self) -> bool:
        """Whether trying the same write again soon is pointless, so that the user should hear of it."""
        return self in (Why.FORBIDDEN, Why.INVALID, Why.EXISTS)


@dataclass(frozen=True, slots=True)
class Written:
    """The write is done; `body` is the object as the API server now has it ({} after a deletion that finished)."""

    body: Json


@dataclass(frozen=True, slots=True)
class Refused:
    """The write is not done, or nobody knows; `message` is the API server's."""

    why: Why
    message: str
    retry_after_seconds: float | None = None


Outcome = Written | Refused


@dataclass(frozen=True, slots=True)
class Primary:
    """Which object a status, finalizers or an event belong to: name and identity, nothing else."""

    key: Key
    api_version: str
    uid: str
    resource_version: str


class Writer(Protocol):
    """The only door out. Every method sends one request and never raises for what the API server answers."""

    async def apply(self, manager: str, body: Json) -> Outcome:
        """Server-side apply of the fields in `body`, taking over those that others own."""

    async def create(self, manager: str, body: Json) -> Outcome:
        """Creation; refused with EXISTS where the name is taken."""

    async def delete(self, action: Delete) -> Outcome:
        """Deletion of exactly the object that the planner saw."""

    async def status(self, manager: str, primary: Primary, status: Mapping[str, Any]) -> Outcome:
        """Server-side apply of the whole status, through /status; CONFLICT when the primary has changed since."""

    async def finalizers(self, manager: str, primary: Primary, finalizers: tuple[str, ...]) -> Outcome:
        """The list of finalizers as a whole; refused with CONFLICT when the primary has changed since."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which object of a name, and which version of it."""

    uid: str
    resource_version: int


class ReadError(Exception):
    """The API server could not answer a read; try later."""


class Reader(Protocol):
    """Live reads, for the audit alone. Each raises ReadError where no answer came."""

    async def read(self, key: Key) -> Json | None:
        """The object as the API server has it now, or None where there is none."""

    async def identities(self, kind: str) -> tuple[Mapping[Key, Identity], int]:
        """Uid and resourceVersion of all watched objects of a kind, and the resourceVersion of the list."""


class Recorder(Protocol):
    """Where events go. Never raises and never waits: an event is not worth a reconcile."""

    def record(self, primary: Primary, event: Event) -> None:
        """Hands one event over."""


class Meter(Protocol):
    """What the loop counts."""

    def reconciled(self, kind: str, seconds: float, result: str) -> None:
        """One step of the loop: done, waiting, refused, failed or crashed."""

    def repaired(self, kind: str) -> None:
        """The audit, or an overdue gate, found something that the watch had not told."""


class NoMeter:
    """Counts nothing."""

    def reconciled(self, kind: str, seconds: float, result: str) -> None:
        """See Meter."""

    def repaired(self, kind: str) -> None:
        """See Meter."""

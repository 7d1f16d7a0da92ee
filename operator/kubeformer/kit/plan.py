"""Plan: what a planner says. The loop of `control` carries it out: actions in order, then status, then events."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kubeformer.kit.view import Key


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of `body`, which holds every field this controller owns and no other.

    `only_if_absent` creates and never changes
    (the shared claim of a namespace, which belongs to nobody).
    """

    body: Mapping[str, Any]
    only_if_absent: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletion with preconditions: nothing is deleted that is not exactly what the planner saw."""

    key: Key
    uid: str
    resource_version: str | None = None
    propagation: Literal["Background", "Foreground", "Orphan"] = "Background"


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes event about the primary, recorded only after its status has landed."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to do next for one primary.

    `status` is the whole status to be (None: leave it); the loop skips the write when it equals what is
    stored. `finalizers` is the whole list to be (None: leave it). `look_again_at` is a point in time,
    seconds since the epoch (None: only news wakes this key). `poll` names the pods (uid, IP) whose /progress
    the operator should keep reading. `coalesce_status` says that only progress figures changed, so that the loop may
    delay the write to keep to its rate. `depends_on` names objects that are not this primary's own (a claim that a
    user will make, the job whose model is served) and whose change has to wake this key; the last plan's list counts.
    """

    actions: tuple[Apply | Delete, ...] = ()
    status: Mapping[str, Any] | None = None
    events: tuple[Event, ...] = ()
    finalizers: tuple[str, ...] | None = None
    look_again_at: float | None = None
    poll: tuple[tuple[str, str], ...] = field(default=())
    coalesce_status: bool = False
    depends_on: tuple[Key, ...] = field(default=())

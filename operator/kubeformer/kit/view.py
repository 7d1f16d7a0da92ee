"""View: what a planner may ask of the store. The store of `control` is one; tests make their own from a list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kubeformer.kit.child import Child, Json


@dataclass(frozen=True, slots=True)
class Key:
    """Names one object of one kind: a key of the store and of the work queue."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Report:
    """What the poller last heard from a worker pod: the JSON of contract.progress.Progress, and when."""

    body: Json
    time: float  # seconds since the epoch, by the operator's clock


class View(Protocol):
    """A consistent look at the cluster as far as the operator has heard of it."""

    def primary(self, key: Key) -> Json | None:
        """A TrainingJob or ModelDeployment as the API server stores it (whole), or None."""

    def primaries(self, kind: str) -> Sequence[Json]:
        """All objects of one of our own kinds in all namespaces (whole), by namespace and name."""

    def every(self, kind: str) -> Sequence[Child]:
        """All watched objects of a kind in all namespaces, by namespace and name (nodes have no owner)."""

    def child(self, key: Key) -> Child | None:
        """A watched child by name, or None."""

    def children(self, kind: str, namespace: str, owner_uid: str) -> Sequence[Child]:
        """The watched objects of `kind` whose controlling owner is `owner_uid`, by name."""

    def labelled(self, kind: str, namespace: str, label: str, value: str) -> Sequence[Child]:
        """The watched objects of `kind` that carry the label (pods of a Job are not owned by us), by name."""

    def report(self, pod_uid: str) -> Report | None:
        """The last progress polled from that pod, or None."""

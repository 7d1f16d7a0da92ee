"""A cluster in memory, as much as the loop needs of one, and an operator process that may die at any write.

`FakeCluster` keeps objects with uids and versions, carries out writes, and holds back the watch events until a test
delivers them. `Process` is the loop with its own store and queue; a second one on the same cluster is the restart.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from kubeformer.control.dependencies import Dependencies
from kubeformer.control.gate import Gate
from kubeformer.control.news import News
from kubeformer.control.ports import Identity, Outcome, Primary, ReadError, Refused, Why, Written
from kubeformer.control.queue import WorkQueue
from kubeformer.control.sameness import same
from kubeformer.control.store import Store
from kubeformer.control.worker import Controller, Loop
from kubeformer.kit.plan import Delete, Event
from kubeformer.kit.view import Key

API_VERSION = "toys.example/v1"
LABEL = "toys.example/toy"
START = 1_700_000_000.0

Object = dict[str, Any]


class Fault(Enum):
    """What happens at one write."""

    DIE_BEFORE = "the process dies before the write reaches the API server"
    DIE_AFTER = "the write is done, the process dies before it hears of it"
    LOST = "the write is not done, and nobody knows"
    LOST_ANSWER = "the write is done, and nobody knows"
    CONFLICT = "the write is refused with a conflict"


class Death(BaseException):
    """kill -9."""


class FakeCluster:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.events: list[tuple[str, Object]] = []  # the watch, in order: (ADDED | MODIFIED | DELETED, object)
        self.created: Counter[Key] = Counter()
        self.deleted: Counter[Key] = Counter()
        self.writes: list[tuple[str, Key]] = []
        self.told: list[tuple[Key, str]] = []  # events recorded
        self.faults: dict[int, Fault] = {}
        self.refuse: Callable[[Object], str | None] = lambda body: None
        self.unreadable = False
        self._version = 100
        self._uids = 0

    # What users and controllers do.

    def put(self, body: Object) -> Object:
        """Creates or replaces an object."""
        key = _key(body)
        before = self.objects.get(key)
        stored = copy.deepcopy(body)
        metadata = stored["metadata"]
        if before is None:
            self._uids += 1
            metadata |= {"uid": f"uid-{self._uids}", "generation": 1}
            self.created[key] += 1
        else:
            grown = before.get("spec") != stored.get("spec")
            generation = before["metadata"]["generation"] + (1 if grown else 0)
            metadata |= {"uid": before["metadata"]["uid"], "generation": generation}
            if same({**before, "metadata": _without_version(before)}, {**stored, "metadata": _without_version(stored)}):
                return before
        metadata["resourceVersion"] = self._next()
        self.objects[key] = stored
        self.events.append(("ADDED" if before is None else "MODIFIED", copy.deepcopy(stored)))
        return stored

    def remove(self, key: Key) -> None:
        """Deletes an object and, as garbage collection would, what it owns."""
        body = self.objects.pop(key)
        self.deleted[key] += 1
        gone = copy.deepcopy(body)
        gone["metadata"]["resourceVersion"] = self._next()
        self.events.append(("DELETED", gone))
        uid = body["metadata"]["uid"]
        for child, other in list(self.objects.items()):
            if any(owner["uid"] == uid for owner in other["metadata"].get("ownerReferences") or ()):
                self.remove(child)

    def shape(self) -> dict[Key, Any]:
        """All objects without what differs from run to run."""
        shape: dict[Key, Any] = {}
        for key, body in self.objects.items():
            plain = copy.deepcopy(body)
            for name in ("uid", "resourceVersion", "generation"):
                plain["metadata"].pop(name, None)
            for owner in plain["metadata"].get("ownerReferences") or ():
                owner.pop("uid")
            shape[key] = plain
        return shape

    # The loop's ports.

    async def apply(self, manager: str, body: Mapping[str, Any]) -> Outcome:
        """Server-side apply, as far as one manager can tell."""
        key = _key(body)

        def act() -> Outcome:
            refusal = self.refuse(dict(body))
            if refusal:
                return Refused(Why.INVALID, refusal)
            before = self.objects.get(key, {})
            merged = {**before, **copy.deepcopy(dict(body))}
            merged["metadata"] = {**before.get("metadata", {}), **copy.deepcopy(dict(body["metadata"]))}
            return Written(copy.deepcopy(self.put(merged)))

        return self._write("apply", key, act)

    async def create(self, manager: str, body: Mapping[str, Any]) -> Outcome:
        """Creation."""
        key = _key(body)

        def act() -> Outcome:
            if key in self.objects:
                return Refused(Why.EXISTS, f"{key} already exists")
            return Written(copy.deepcopy(self.put(dict(body))))

        return self._write("create", key, act)

    async def delete(self, action: Delete) -> Outcome:
        """Deletion with preconditions."""

        def act() -> Outcome:
            there = self.objects.get(action.key)
            if there is None:
                return Refused(Why.NOT_FOUND, f"{action.key} not found")
            if there["metadata"]["uid"] != action.uid:
                return Refused(Why.CONFLICT, "the uid differs")
            self.remove(action.key)
            return Written({})

        return self._write("delete", action.key, act)

    async def status(self, manager: str, primary: Primary, status: Mapping[str, Any]) -> Outcome:
        """The status, as a whole."""

        def act() -> Outcome:
            there = self.objects.get(primary.key)
            if there is None:
                return Refused(Why.NOT_FOUND, f"{primary.key} not found")
            if there["metadata"]["resourceVersion"] != primary.resource_version:
                return Refused(Why.CONFLICT, "the object has been modified")
            return Written(copy.deepcopy(self.put({**there, "status": copy.deepcopy(dict(status))})))

        return self._write("status", primary.key, act)

    async def finalizers(self, manager: str, primary: Primary, finalizers: tuple[str, ...]) -> Outcome:
        """The finalizers, as a whole; the last one taken from an object that is going lets it go."""

        def act() -> Outcome:
            there = self.objects.get(primary.key)
            if there is None:
                return Refused(Why.NOT_FOUND, f"{primary.key} not found")
            if there["metadata"]["resourceVersion"] != primary.resource_version:
                return Refused(Why.CONFLICT, "the object has been modified")
            if not finalizers and there["metadata"].get("deletionTimestamp"):
                self.remove(primary.key)
                return Written({})
            return Written(
                copy.deepcopy(self.put({**there, "metadata": {**there["metadata"], "finalizers": list(finalizers)}}))
            )

        return self._write("finalizers", primary.key, act)

    async def read(self, key: Key) -> Object | None:
        """A live read."""
        if self.unreadable:
            raise ReadError("the API server does not answer")
        return copy.deepcopy(self.objects.get(key))

    async def identities(self, kind: str) -> tuple[Mapping[Key, Identity], int]:
        """A metadata-only list."""
        if self.unreadable:
            raise ReadError("the API server does not answer")
        return {
            key: Identity(body["metadata"]["uid"], int(body["metadata"]["resourceVersion"]))
            for key, body in self.objects.items()
            if key.kind == kind
        }, self._version

    def record(self, primary: Primary, event: Event) -> None:
        """An event."""
        self.told.append((primary.key, event.reason))

    def _write(self, verb: str, key: Key, act: Callable[[], Outcome]) -> Outcome:
        fault = self.faults.pop(len(self.writes), None)
        self.writes.append((verb, key))
        if fault is Fault.DIE_BEFORE:
            raise Death
        if fault is Fault.CONFLICT:
            return Refused(Why.CONFLICT, "somebody else was faster")
        if fault is Fault.LOST:
            return Refused(Why.UNAVAILABLE, "connection refused")
        outcome = act()
        if fault is Fault.DIE_AFTER:
            raise Death
        return Refused(Why.UNAVAILABLE, "connection reset") if fault is Fault.LOST_ANSWER else outcome

    def _next(self) -> str:
        self._version += 1
        return str(self._version)


class Process:
    """One life of the operator. `clock` is a list of one number, shared by all lives."""

    def __init__(
        self,
        cluster: FakeCluster,
        controllers: Mapping[str, Controller],
        clock: list[float],
        gate: Callable[[Store], Gate] = Gate,
        progress_seconds: float = 15.0,
    ) -> None:
        self.cluster = cluster
        self.clock = clock
        self.kinds = tuple(controllers)
        self.store = Store(labels=(LABEL,))
        self.queue = WorkQueue(lambda: clock[0], lambda: 0.5)
        self.gate = gate(self.store)
        self.dependencies = Dependencies(self.kinds, {LABEL: "Toy"})
        self.news = News(self.store, self.queue, self.gate, self.dependencies)
        self.polled: dict[Key, tuple[tuple[str, str], ...]] = {}
        self.results: list[str] = []
        self.loop = Loop(
            controllers,
            store=self.store,
            queue=self.queue,
            gate=self.gate,
            news=self.news,
            dependencies=self.dependencies,
            writer=cluster,
            reader=cluster,
            recorder=cluster,
            clock=lambda: clock[0],
            polled=self.polled.__setitem__,
            progress_seconds=progress_seconds,
        )
        for body in cluster.objects.values():
            self.news.changed(body["kind"], copy.deepcopy(body))
        self.heard = len(cluster.events)

    def deliver(self, count: int | None = None) -> int:
        """Tells the next events of the watch (all of them if no count is given); returns how many there were."""
        events = self.cluster.events[self.heard :][:count]
        for verb, body in events:
            self.heard += 1
            if verb == "DELETED":
                self.news.gone(_key(body), int(body["metadata"]["resourceVersion"]))
            else:
                self.news.changed(body["kind"], copy.deepcopy(body))
        return len(events)

    async def step(self) -> bool:
        """Works on one key, if one is to be worked on now."""
        key = self.queue.take(self.clock[0])
        if key is None:
            return False
        try:
            self.results.append(await self.loop.step(key))
        finally:
            self.queue.done(key)
        return True

    async def settle(self, horizon: float = 600.0, steps: int = 500) -> None:
        """Works, with the watch up to date and time passing, until nothing is left to do within the horizon."""
        end = self.clock[0] + horizon
        for _ in range(steps):
            self.deliver()
            if await self.step():
                continue
            due = self.queue.next_due()
            if due is None or due > end:
                return
            self.clock[0] = max(self.clock[0], due)
        raise AssertionError(f"still busy after {steps} steps: {self.results[-10:]}")


def toy(name: str = "bear", namespace: str = "lab", **spec: Any) -> Object:
    """A primary."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Toy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    }


def child(primary: Mapping[str, Any], kind: str, name: str, **content: Any) -> Object:
    """A child of the primary, ready to apply."""
    m = primary["metadata"]
    owner = {"apiVersion": API_VERSION, "kind": "Toy", "name": m["name"], "uid": m["uid"], "controller": True}
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {
            "namespace": m["namespace"],
            "name": name,
            "labels": {LABEL: m["name"]},
            "ownerReferences": [owner],
        },
        **content,
    }


def _key(body: Mapping[str, Any]) -> Key:
    return Key(body["kind"], body["metadata"].get("namespace", ""), body["metadata"]["name"])


def _without_version(body: Object) -> Object:
    return {k: v for k, v in body["metadata"].items() if k not in ("resourceVersion", "generation", "uid")}

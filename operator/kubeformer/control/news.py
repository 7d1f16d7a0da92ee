"""News: the one way in. Whatever is heard of the cluster goes through here into the store, and wakes whom it concerns.

kopf's handlers, reflectors, the poller and the audit call it, in the loop's thread; nothing here waits.
"""

from collections.abc import Iterable
from dataclasses import replace

from kubeformer.control.dependencies import Dependencies
from kubeformer.control.gate import Gate
from kubeformer.control.queue import Lane, WorkQueue
from kubeformer.control.store import Store, key_of, primary_key
from kubeformer.kit.child import Child, Json, project
from kubeformer.kit.view import Key


class News:
    """See the module's docstring. Every method returns whether, or how much, it was news."""

    def __init__(self, store: Store, queue: WorkQueue, gate: Gate, dependencies: Dependencies) -> None:
        self._store = store
        self._queue = queue
        self._gate = gate
        self._dependencies = dependencies

    def changed(self, kind: str, body: Json) -> bool:
        """An object of any watched kind, raw, as added or changed."""
        return self.primary(kind, body) if kind in self._dependencies.kinds else self.child(project(kind, body))

    def primary(self, kind: str, body: Json, lane: Lane = Lane.NEWS) -> bool:
        """A primary, added or changed."""
        if not self._store.put_primary(kind, body):
            return False
        key = primary_key(kind, body)
        going = body["metadata"].get("deletionTimestamp") is not None
        self._wake(self._dependencies.of_primary(key), Lane.URGENT if going else lane)
        self._wake(self._gate.waiters(key), lane)
        return True

    def child(self, child: Child) -> bool:
        """A child, added or changed."""
        key = key_of(child)
        before = self._store.child(key)
        if not self._store.put_child(child):
            return False
        self._wake(self._gate.waiters(key), Lane.NEWS)
        if before is None or not _looks_the_same(before, child):
            self._wake(self._dependencies.of_child(child), Lane.NEWS)
            if before is not None:  # it may have changed hands
                self._wake(self._dependencies.of_child(before), Lane.NEWS)
        return True

    def gone(self, key: Key, resource_version: int) -> bool:
        """An object is deleted, at the version or before."""
        child = self._store.child(key)
        if not self._store.remove(key, resource_version):
            return False
        self._after(key, child)
        return True

    def listed(self, kind: str, present: Iterable[Key], resource_version: int) -> int:
        """A whole list was read (and each of its objects told): what it lacks is gone. Returns how many were."""
        keep = set(present)
        before = {key: self._store.child(key) for key in self._store.identities(kind) if key not in keep}
        gone = self._store.listed(kind, keep, resource_version)
        for key in gone:
            self._after(key, before.get(key))
        return len(gone)

    def rewound(self, kind: str) -> None:
        """The API server's versions of a kind have gone backwards."""
        self._store.forget_versions(kind)

    def report(self, key: Key, pod_uid: str, body: Json, time: float, *, wake: bool) -> None:
        """A worker pod of the primary `key` said something; `wake` says whether it matters now."""
        self._store.put_report(pod_uid, body, time)
        if wake:
            self._queue.add(key)

    def everything(self, kinds: Iterable[str]) -> None:
        """Look at all primaries once more, without haste (a new leader does)."""
        for kind in kinds:
            self._wake(self._store.keys(kind), Lane.PERIODIC)

    def _after(self, key: Key, child: Child | None) -> None:
        if key.kind in self._dependencies.kinds:
            self._wake(self._dependencies.of_primary(key), Lane.URGENT)
        if child is not None:
            self._wake(self._dependencies.of_child(child), Lane.NEWS)
        self._wake(self._gate.waiters(key), Lane.NEWS)

    def _wake(self, keys: Iterable[Key], lane: Lane) -> None:
        for key in keys:
            self._queue.add(key, lane)


def _looks_the_same(before: Child, after: Child) -> bool:
    """Whether planners could not tell the two apart (the rest of the object changed: a heartbeat, a managed field)."""
    return replace(before, meta=replace(before.meta, resource_version=after.meta.resource_version)) == after

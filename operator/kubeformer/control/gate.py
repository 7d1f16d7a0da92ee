"""Gate: nobody plans for a key before the store has seen that key's own last writes.

Without it a worker could look at a store that does not know yet of the Job it has just created, and create it again.
After every write the loop tells the gate what came back; before every plan it asks. When the news
does not come in time (a watch may be dead), the answer is Overdue with the objects to read live.
"""

from collections import defaultdict
from dataclasses import dataclass

from kubeformer.control.store import Store
from kubeformer.kit.view import Key


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet; ask again when news of one of them comes, or at the time."""

    until: float


@dataclass(frozen=True, slots=True)
class Overdue:
    """The news should have come long ago; these objects must be read from the API server."""

    objects: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class _Expectation:
    """That the store sees a version, or that an incarnation (uid) is gone or going."""

    deadline: float
    resource_version: int = -1
    gone_uid: str | None = None
    going_is_enough: bool = True


class Gate:
    """See the module's docstring. `patience` is how long news may take, in seconds."""

    def __init__(self, store: Store, patience: float = 3.0) -> None:
        self._store = store
        self._patience = patience
        self._expected: dict[Key, dict[Key, _Expectation]] = {}
        self._waiters: dict[Key, set[Key]] = defaultdict(set)

    def wrote(self, key: Key, written: Key, resource_version: int, now: float) -> None:
        """On behalf of `key`, the object `written` was created or changed and is now at the version."""
        if not self._store.has_seen(written, resource_version):
            self._expect(key, written, _Expectation(now + self._patience, resource_version=resource_version))

    def deleted(self, key: Key, deleted: Key, uid: str, now: float) -> None:
        """On behalf of `key`, the object was asked to go."""
        self._expect_gone(key, deleted, _Expectation(now + self._patience, gone_uid=uid))

    def released(self, key: Key, uid: str, now: float) -> None:
        """The last finalizer was taken from `key`, which was going already: from now on there is no such object.

        The answer to that write tells no newer version to wait for. A plan made before the deletion is seen would
        make again what the last plan has cleared away, and nobody would be left to clear it a second time.
        """
        self._expect_gone(key, key, _Expectation(now + self._patience, gone_uid=uid, going_is_enough=False))

    def check(self, key: Key, now: float) -> Wait | Overdue | None:
        """Whether the key may be planned for (None), must wait, or needs live reads first."""
        expected = self._expected.get(key)
        if not expected:
            return None
        for written in [w for w, e in expected.items() if self._met(w, e)]:
            self._drop(key, written)
        if key not in self._expected:
            return None
        late = tuple(written for written, e in expected.items() if e.deadline <= now)
        if late:
            return Overdue(late)
        return Wait(min(e.deadline for e in expected.values()))

    def waiters(self, written: Key) -> frozenset[Key]:
        """The keys that wait for news of an object."""
        return frozenset(self._waiters.get(written, ()))

    def settled(self, key: Key, written: Key) -> None:
        """The object was read live, so that whatever was expected of it is now known."""
        self._drop(key, written)

    def forget(self, key: Key) -> None:
        """The key is gone for good."""
        for written in list(self._expected.get(key, ())):
            self._drop(key, written)

    def _met(self, written: Key, expectation: _Expectation) -> bool:
        if expectation.gone_uid is None:
            return self._store.has_seen(written, expectation.resource_version)
        known = self._store.identity(written)
        if known is None or known.uid != expectation.gone_uid:
            return True
        return expectation.going_is_enough and self._store.terminating(written)

    def _expect_gone(self, key: Key, gone: Key, expectation: _Expectation) -> None:
        if not self._met(gone, expectation):
            self._expect(key, gone, expectation)

    def _expect(self, key: Key, written: Key, expectation: _Expectation) -> None:
        self._expected.setdefault(key, {})[written] = expectation
        self._waiters[written].add(key)

    def _drop(self, key: Key, written: Key) -> None:
        expected = self._expected.get(key)
        if expected is not None:
            expected.pop(written, None)
            if not expected:
                del self._expected[key]
        waiters = self._waiters.get(written)
        if waiters is not None:
            waiters.discard(key)
            if not waiters:
                del self._waiters[written]

"""Applied: which server-side applies need not be sent again, because nothing has changed on either side.

Planners say what should be, every time. Sending that at every look would make an idle operator write, although nothing
would come of it. So the loop remembers what it last applied to each object and what the object was then, and leaves
out an apply of the same body to an object whose owned parts are as they were. After a restart the memory is empty,
so everything is applied once more, which mends what was changed meanwhile and is nothing to the API server otherwise.
"""

from dataclasses import dataclass
from typing import Any

from kubeformer.control.sameness import digest
from kubeformer.control.store import Store
from kubeformer.kit.child import Child, Json, project
from kubeformer.kit.view import Key

TIDY_AT_LEAST = 1000


@dataclass(frozen=True, slots=True)
class _Memory:
    body: bytes
    uid: str
    resource_version: str
    essence: bytes  # what the object was, status left out


class Applied:
    """See the module's docstring."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._memories: dict[Key, _Memory] = {}
        self._tidy_at = TIDY_AT_LEAST

    def needless(self, key: Key, body: Json) -> bool:
        """Whether applying the body would change nothing, as far as the store knows."""
        memory = self._memories.get(key)
        child = self._store.child(key)
        if memory is None or child is None or child.meta.uid != memory.uid or memory.body != digest(body):
            return False
        return child.meta.resource_version == memory.resource_version or (
            child.meta.generation > 0 and memory.essence == _essence(child)
        )

    def note(self, key: Key, body: Json, answer: Json) -> None:
        """The body was applied, and the API server answered with the whole object."""
        child = project(key.kind, answer)
        self._memories[key] = _Memory(digest(body), child.meta.uid, child.meta.resource_version, _essence(child))
        if len(self._memories) >= self._tidy_at:
            self._tidy()

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._memories.pop(key, None)

    def _tidy(self) -> None:
        """Drops what is gone with its owner. At worst something just made is forgotten and applied once more."""
        self._memories = {k: m for k, m in self._memories.items() if self._store.identity(k) is not None}
        self._tidy_at = max(TIDY_AT_LEAST, 2 * len(self._memories))


def _essence(child: Child) -> bytes:
    """The generation stands for the spec, which the projection does not hold whole."""
    m = child.meta
    whole: dict[str, Any] = {
        "generation": m.generation,
        "labels": m.labels,
        "annotations": m.annotations,
        "owner": m.owner_uid,
        "deleted": m.deletion_timestamp,
        "spec": child.spec,
        "data": child.data,
    }
    return digest(whole)

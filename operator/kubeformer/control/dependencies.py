"""Dependencies: whom news concerns.

A child concerns the primary that owns it and every primary that one of its labels names (the pods of a Job are not
ours, but carry our label). And anything concerns those that have said so in their last plan's `depends_on`: a
deployment wakes when the job whose model it serves has finished, a job when the claim it waits for is made. A key
without a name there stands for every object of the kind in the namespace (a node that has room, whatever its name).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from kubeformer.kit.child import Child
from kubeformer.kit.view import Key


class Dependencies:
    """See the module's docstring. `labels` maps a label to the primary kind that its value names."""

    def __init__(self, kinds: Iterable[str], labels: Mapping[str, str]) -> None:
        self.kinds = tuple(kinds)
        self._labels = dict(labels)
        self._dependents: dict[Key, set[Key]] = defaultdict(set)
        self._depends_on: dict[Key, frozenset[Key]] = {}

    def of_child(self, child: Child) -> set[Key]:
        """The primaries that a change of the child concerns."""
        m = child.meta
        concerned = {
            Key(kind, m.namespace, m.labels[label]) for label, kind in self._labels.items() if label in m.labels
        }
        if m.owner_kind in self.kinds and m.owner_name:
            concerned.add(Key(m.owner_kind, m.namespace, m.owner_name))
        return concerned | self._dependents_of(Key(child.kind, m.namespace, m.name))

    def of_primary(self, key: Key) -> set[Key]:
        """The primaries that a change of the primary concerns: itself and all that depend on it."""
        return {key} | self._dependents_of(key)

    def note(self, key: Key, depends_on: Iterable[Key]) -> None:
        """Remembers what a primary depends on from now on, instead of what it did."""
        before = self._depends_on.pop(key, frozenset())
        after = frozenset(depends_on) - {key}
        for gone in before - after:
            self._dependents[gone].discard(key)
            if not self._dependents[gone]:
                del self._dependents[gone]
        for new in after - before:
            self._dependents[new].add(key)
        if after:
            self._depends_on[key] = after

    def _dependents_of(self, key: Key) -> set[Key]:
        anything = Key(key.kind, key.namespace, "")
        return {*self._dependents.get(key, ()), *self._dependents.get(anything, ())}

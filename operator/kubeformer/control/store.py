"""Store: what the operator has heard of the cluster, which is what planners see (it is a kit.View).

Primaries are kept whole, children as projections. News comes from several sources (kopf, reflectors, live reads of the
audit) and may arrive late or twice, so every entry carries its resourceVersion and older news is ignored; a deletion
leaves its version behind for the same reason. Versions compare as integers among objects of one kind
(Kubernetes has promised that since 1.35).
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kubeformer.control.ports import Identity
from kubeformer.kit.child import Child, Json
from kubeformer.kit.view import Key, Report

REMEMBERED_DELETIONS = 20_000


def key_of(child: Child) -> Key:
    """The key under which a child is stored."""
    return Key(child.kind, child.meta.namespace, child.meta.name)


def primary_key(kind: str, body: Json) -> Key:
    """The key of a raw object of `kind`."""
    return Key(kind, body["metadata"].get("namespace", ""), body["metadata"]["name"])


def identity_of(body: Json) -> Identity:
    """Uid and version of a raw object."""
    return Identity(body["metadata"]["uid"], int(body["metadata"]["resourceVersion"]))


class Store:
    """See the module's docstring. `labels` names the labels that `labelled` can look up."""

    def __init__(self, labels: Iterable[str] = ()) -> None:
        self._labels = tuple(labels)
        self._primaries: dict[Key, Json] = {}
        self._children: dict[Key, Child] = {}
        self._identities: dict[str, dict[Key, Identity]] = defaultdict(dict)  # by kind
        self._deleted: OrderedDict[Key, int] = OrderedDict()  # the version up to which a name is known to be gone
        self._owned: dict[tuple[str, str, str], set[Key]] = defaultdict(set)  # by kind, namespace, owner's uid
        self._labelled: dict[tuple[str, str, str, str], set[Key]] = defaultdict(set)  # kind, namespace, label, value
        self._reports: dict[str, Report] = {}

    # What planners ask (kit.View).

    def primary(self, key: Key) -> Json | None:
        """See View."""
        return self._primaries.get(key)

    def primaries(self, kind: str) -> Sequence[Json]:
        """See View."""
        return [self._primaries[key] for key in sorted(self.keys(kind), key=_place)]

    def every(self, kind: str) -> Sequence[Child]:
        """See View."""
        return self._in_order(key for key in self._identities.get(kind, ()) if key in self._children)

    def child(self, key: Key) -> Child | None:
        """See View."""
        return self._children.get(key)

    def children(self, kind: str, namespace: str, owner_uid: str) -> Sequence[Child]:
        """See View."""
        return self._in_order(self._owned.get((kind, namespace, owner_uid), ()))

    def labelled(self, kind: str, namespace: str, label: str, value: str) -> Sequence[Child]:
        """See View. Raises KeyError for a label that the store was not made for."""
        if label not in self._labels:
            raise KeyError(f"the store has no index of label {label}; it has {', '.join(self._labels) or 'none'}")
        return self._in_order(self._labelled.get((kind, namespace, label, value), ()))

    def report(self, pod_uid: str) -> Report | None:
        """See View."""
        return self._reports.get(pod_uid)

    # What the loop asks.

    def keys(self, kind: str) -> tuple[Key, ...]:
        """The keys of all primaries of a kind."""
        return tuple(key for key in self._identities.get(kind, ()) if key in self._primaries)

    def identities(self, kind: str) -> Mapping[Key, Identity]:
        """Uid and version of everything known of a kind."""
        return dict(self._identities.get(kind, {}))

    def identity(self, key: Key) -> Identity | None:
        """Uid and version of one object, if it is known to exist."""
        return self._identities[key.kind].get(key)

    def terminating(self, key: Key) -> bool:
        """Whether the object is known and carries a deletion timestamp."""
        if key in self._primaries:
            return self._primaries[key]["metadata"].get("deletionTimestamp") is not None
        child = self._children.get(key)
        return child is not None and child.meta.deletion_timestamp is not None

    def has_seen(self, key: Key, resource_version: int) -> bool:
        """Whether news of the object at this version, or later, has arrived."""
        known = self._identities[key.kind].get(key)
        if known is not None and known.resource_version >= resource_version:
            return True
        return self._deleted.get(key, -1) >= resource_version

    # News. Each method says whether it was news.

    def put_primary(self, kind: str, body: Json) -> bool:
        """A whole object, added or changed."""
        key = primary_key(kind, body)
        if not self._is_news(key, identity_of(body)):
            return False
        self._identities[kind][key] = identity_of(body)
        self._primaries[key] = body
        return True

    def put_child(self, child: Child) -> bool:
        """A child, added or changed."""
        key = key_of(child)
        identity = Identity(child.meta.uid, int(child.meta.resource_version))
        if not self._is_news(key, identity):
            return False
        self._unindex(key)
        self._identities[child.kind][key] = identity
        self._children[key] = child
        for index in self._places(child):
            index.add(key)
        return True

    def remove(self, key: Key, resource_version: int) -> bool:
        """A deletion that happened at, or not after, the version. A later incarnation of the name stays."""
        known = self._identities[key.kind].get(key)
        self._deleted[key] = max(resource_version, self._deleted.pop(key, -1))
        while len(self._deleted) > REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)
        if known is None or known.resource_version > resource_version:
            return False
        self._unindex(key)
        del self._identities[key.kind][key]
        self._primaries.pop(key, None)
        child = self._children.pop(key, None)
        if child is not None:
            self._reports.pop(child.meta.uid, None)
        return True

    def listed(self, kind: str, present: Iterable[Key], resource_version: int) -> list[Key]:
        """A whole list of a kind was read at the version: what it lacks is gone. Returns what was removed."""
        there = set(present)
        absent = [key for key in self._identities[kind] if key not in there]
        return [key for key in absent if self.remove(key, resource_version)]

    def forget_versions(self, kind: str) -> None:
        """The server's history went back (etcd was restored): everything it says of the kind from now on is news."""
        known = self._identities[kind]
        for key, identity in known.items():
            known[key] = Identity(identity.uid, -1)
        for key in [key for key in self._deleted if key.kind == kind]:
            del self._deleted[key]

    def put_report(self, pod_uid: str, body: Json, time: float) -> None:
        """What a worker pod said of itself; dropped with the pod."""
        self._reports[pod_uid] = Report(body, time)

    def drop_report(self, pod_uid: str) -> None:
        """Forgets what a pod said (no one polls it any more)."""
        self._reports.pop(pod_uid, None)

    # Inside.

    def _is_news(self, key: Key, identity: Identity) -> bool:
        known = self._identities[key.kind].get(key)
        if known is not None and known.resource_version >= identity.resource_version:
            return False
        return self._deleted.get(key, -1) < identity.resource_version

    def _in_order(self, keys: Iterable[Key]) -> list[Child]:
        return [self._children[key] for key in sorted(keys, key=_place)]

    def _places(self, child: Child) -> list[set[Key]]:
        m = child.meta
        places = [
            self._labelled[child.kind, m.namespace, label, m.labels[label]]
            for label in self._labels
            if label in m.labels
        ]
        if m.owner_uid is not None:
            places.append(self._owned[child.kind, m.namespace, m.owner_uid])
        return places

    def _unindex(self, key: Key) -> None:
        child = self._children.get(key)
        if child is None:
            return
        m = child.meta
        owned: tuple[Any, ...] = (child.kind, m.namespace, m.owner_uid)
        _discard(self._owned, owned, key)
        for label in self._labels:
            if label in m.labels:
                _discard(self._labelled, (child.kind, m.namespace, label, m.labels[label]), key)


def _place(key: Key) -> tuple[str, str]:
    return key.namespace, key.name


def _discard(index: dict[Any, set[Key]], place: tuple[Any, ...], key: Key) -> None:
    """Takes a key out of an index, and the place with its last key, so that indexes do not grow for ever."""
    keys = index.get(place)
    if keys is not None:
        keys.discard(key)
        if not keys:
            del index[place]

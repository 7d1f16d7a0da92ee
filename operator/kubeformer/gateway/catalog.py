"""Catalog: what the gateway has heard from the API server, and the routing table made from it.

It is the sink of two reflectors, one for ModelDeployments and one for the EndpointSlices of their Services.
"""

from collections.abc import Iterable

from kubeformer.kit.child import Json
from kubeformer.kit.view import Key
from kubeformer.routing.table import Table, build

KINDS = ("ModelDeployment", "EndpointSlice")


class Catalog:
    """Keeps the newest body of every object; `table` is rebuilt when it is asked for and something changed."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Json]] = {kind: {} for kind in KINDS}
        self._table: Table | None = Table()

    def changed(self, kind: str, body: Json) -> bool:
        """An object was added or changed."""
        meta = body["metadata"]
        self._objects[kind][Key(kind, meta["namespace"], meta["name"])] = body
        self._table = None
        return True

    def gone(self, key: Key, resource_version: int) -> bool:
        """An object was deleted."""
        self._table = None
        return self._objects[key.kind].pop(key, None) is not None

    def listed(self, kind: str, present: Iterable[Key], resource_version: int) -> int:
        """These are all there are: whatever else is known has been deleted while the watch was broken."""
        stale = set(self._objects[kind]) - set(present)
        for key in stale:
            self.gone(key, resource_version)
        return len(stale)

    def rewound(self, kind: str) -> None:
        """Versions went backwards; nothing here depends on them."""

    @property
    def table(self) -> Table:
        """Who answers to which name, as of the last news."""
        if self._table is None:
            self._table = build(self._objects["ModelDeployment"].values(), self._objects["EndpointSlice"].values())
        return self._table

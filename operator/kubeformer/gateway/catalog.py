"""Catalog: what the gateway has heard from the API server, and the routing table made from it."""

from collections.abc import Mapping
from typing import Any

from kubeformer.routing.table import Table, build

Json = Mapping[str, Any]
Name = tuple[str, str]


class Catalog:
    """Keeps the ModelDeployments and EndpointSlices by name; `table` is rebuilt when something changed."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Name, Json]] = {"ModelDeployment": {}, "EndpointSlice": {}}
        self._table: Table | None = Table()

    def put(self, kind: str, body: Json) -> None:
        """An object was added or changed."""
        meta = body["metadata"]
        self._objects[kind][meta["namespace"], meta["name"]] = body
        self._table = None

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """An object is gone."""
        self._objects[kind].pop((namespace, name), None)
        self._table = None

    @property
    def table(self) -> Table:
        """Who answers to which name, as of the last news."""
        if self._table is None:
            self._table = build(self._objects["ModelDeployment"].values(), self._objects["EndpointSlice"].values())
        return self._table

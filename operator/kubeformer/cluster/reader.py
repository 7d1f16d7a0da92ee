"""LiveReader: reads that must not come from the store. The audit and overdue gates use it."""

from collections.abc import Iterable, Mapping

from kubeformer.cluster.resources import RESOURCES
from kubeformer.cluster.transport import METADATA_ONLY, Transport, Unreachable
from kubeformer.control.ports import Identity, ReadError
from kubeformer.kit.child import Json
from kubeformer.kit.view import Key

PAGE = 500


class LiveReader:
    """See control.ports.Reader. `selectors` are the query parameters with which a kind is watched."""

    def __init__(
        self,
        transport: Transport,
        namespaces: Iterable[str] = (),
        selectors: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._transport = transport
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._selectors = selectors or {}

    async def read(self, key: Key) -> Json | None:
        """See control.ports.Reader."""
        try:
            answer = await self._transport.get(RESOURCES[key.kind].path_of(key))
        except Unreachable as error:
            raise ReadError(str(error)) from error
        if answer.ok:
            return answer.body
        if answer.status == 404:
            return None
        raise ReadError(f"reading {key}: {answer.message}")

    async def identities(self, kind: str) -> tuple[Mapping[Key, Identity], int]:
        """See control.ports.Reader. With several namespaces, the version is that of the first list."""
        found: dict[Key, Identity] = {}
        versions = []
        resource = RESOURCES[kind]
        for namespace in self._namespaces if resource.namespaced else (None,):
            items, version = await self._list(resource.path(namespace), self._selectors.get(kind, {}), METADATA_ONLY)
            versions.append(version)
            for item in items:
                m = item["metadata"]
                key = Key(kind, m.get("namespace", ""), m["name"])
                found[key] = Identity(m["uid"], int(m["resourceVersion"]))
        return found, min(versions)

    async def whole(self, kind: str) -> list[Json]:
        """All objects of a kind, as they are; for the first look at our own kinds. Raises ReadError."""
        resource = RESOURCES[kind]
        found: list[Json] = []
        for namespace in self._namespaces if resource.namespaced else (None,):
            items, _ = await self._list(resource.path(namespace), self._selectors.get(kind, {}), "application/json")
            found += [{"apiVersion": resource.api_version, "kind": kind, **item} for item in items]
        return found

    async def discovered(self, kinds: Iterable[str]) -> bool:
        """Whether the API server's discovery names all the kinds. It does so some time after it has started."""
        try:
            groups = await self._transport.get("/apis")
            versions = {v["groupVersion"] for g in groups.body.get("groups") or () for v in g.get("versions") or ()}
            for kind in kinds:
                resource = RESOURCES[kind]
                found = await self._transport.get(f"/apis/{resource.api_version}")
                plurals = {r["name"] for r in found.body.get("resources") or ()}
                if resource.api_version not in versions or resource.plural not in plurals:
                    return False
        except Unreachable:
            return False
        return True

    async def _list(self, path: str, selectors: Mapping[str, str], accept: str) -> tuple[list[Json], int]:
        items: list[Json] = []
        params = {"limit": str(PAGE), **selectors}
        while True:
            try:
                answer = await self._transport.get(path, params, accept)
            except Unreachable as error:
                raise ReadError(str(error)) from error
            if not answer.ok:
                raise ReadError(f"listing {path}: {answer.message}")
            items += answer.body.get("items") or []
            metadata = answer.body["metadata"]
            if not metadata.get("continue"):
                return items, int(metadata["resourceVersion"])
            params["continue"] = metadata["continue"]

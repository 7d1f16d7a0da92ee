"""The routing table: from ModelDeployments and EndpointSlices, as the API server stores them, to names and endpoints.

A served name belongs to the oldest deployment that claims it; `namespace/name` always works. A deployment that
exists but has no ready endpoint stays in the table, because "not ready yet, because ..." is a better answer than
"no such model".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubeformer.contract.names import LABEL_MODEL_DEPLOYMENT, PORT_SERVER

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One replica that answers."""

    address: str
    port: int = PORT_SERVER

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """One ModelDeployment: the names it answers to and the replicas that are ready, sorted by address."""

    namespace: str
    name: str
    served_names: tuple[str, ...]
    created: str  # RFC 3339, as the API server wrote it
    endpoints: tuple[Endpoint, ...] = ()
    reason: str = ""  # why Ready is not True, in the words of its condition

    @property
    def qualified_name(self) -> str:
        """The name that nobody else can claim."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Table:
    """Who answers to which name."""

    targets: Mapping[str, Target] = field(default_factory=dict)  # by served and by qualified name

    def find(self, model: str) -> Target | None:
        """The deployment that `model` means, or None."""
        return self.targets.get(model)

    def served(self) -> list[tuple[str, Target]]:
        """The short names and who has them, sorted by name: what GET /v1/models lists."""
        return sorted((name, target) for name, target in self.targets.items() if "/" not in name)


def build(deployments: Iterable[Json], slices: Iterable[Json]) -> Table:
    """The table for these ModelDeployments and EndpointSlices, in whatever order they come."""
    ready = _ready_endpoints(slices)
    targets = [_target(deployment, ready) for deployment in deployments if not _is_deleting(deployment)]
    targets.sort(key=lambda target: (target.created, target.namespace, target.name))
    by_name: dict[str, Target] = {}
    for target in targets:
        by_name[target.qualified_name] = target
        for name in target.served_names:
            by_name.setdefault(name, target)
    return Table(by_name)


def _target(deployment: Json, ready: Mapping[tuple[str, str], set[Endpoint]]) -> Target:
    meta = deployment["metadata"]
    namespace, name = meta["namespace"], meta["name"]
    model = (deployment.get("spec") or {}).get("model") or {}
    claimed = model.get("servedNames") or [name]
    adapters = [adapter["name"] for adapter in model.get("adapters") or ()]
    return Target(
        namespace=namespace,
        name=name,
        served_names=(*claimed, *adapters),  # the first is the model's without any adapter
        created=meta.get("creationTimestamp", ""),
        endpoints=tuple(sorted(ready.get((namespace, name), ()))),
        reason=_why_not_ready(deployment),
    )


def _why_not_ready(deployment: Json) -> str:
    for condition in (deployment.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "Ready" and condition.get("status") != "True":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": ")
    return ""


def _ready_endpoints(slices: Iterable[Json]) -> Mapping[tuple[str, str], set[Endpoint]]:
    ready: dict[tuple[str, str], set[Endpoint]] = {}
    for piece in slices:
        meta = piece["metadata"]
        deployment = (meta.get("labels") or {}).get(LABEL_MODEL_DEPLOYMENT)
        if deployment is None or _is_deleting(piece):
            continue
        port = next((port["port"] for port in piece.get("ports") or () if port.get("port")), PORT_SERVER)
        found = ready.setdefault((meta["namespace"], deployment), set())
        for endpoint in piece.get("endpoints") or ():
            # The API says: an absent `ready` means ready. A terminating endpoint is never ready.
            if (endpoint.get("conditions") or {}).get("ready", True) is not False:
                found.update(Endpoint(address, port) for address in endpoint.get("addresses") or ())
    return ready


def _is_deleting(body: Json) -> bool:
    return bool(body["metadata"].get("deletionTimestamp"))

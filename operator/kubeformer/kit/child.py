"""Child: the slotted projection of a Kubernetes object that planners see.

The reflector decodes API objects straight into these and drops the rest, because a full pod weighs
kilobytes and the planners read a dozen of its fields. `project` says which fields stay for each kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Meta:
    """The part of ObjectMeta that planners and the writer need; times are RFC 3339 text as given."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    generation: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    owner_uid: str | None = None  # of the controlling owner
    owner_kind: str | None = None
    owner_name: str | None = None


@dataclass(frozen=True, slots=True)
class Child:
    """One object: its kind, metadata, and the parts of spec and status that `project` keeps."""

    kind: str
    meta: Meta
    spec: Json = field(default_factory=dict)
    status: Json = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)  # of a ConfigMap, its binary data (base64) included


KEPT_SPEC: Mapping[str, tuple[str, ...]] = {
    "Pod": ("nodeName", "hostname"),
    "Job": ("suspend", "parallelism", "completions", "backoffLimit", "activeDeadlineSeconds"),
    "Deployment": ("replicas", "paused"),
    "Service": ("clusterIP",),
    "PersistentVolumeClaim": ("accessModes", "volumeName", "storageClassName"),
    "Node": ("unschedulable",),
}
"""Kinds that are not listed keep no spec. ReplicaSets are not watched: the Deployment's status says enough."""

KEPT_STATUS: Mapping[str, tuple[str, ...]] = {"Node": ("allocatable",)}
"""Kinds that are not listed keep all of it. A Node's heartbeat and its list of images say nothing to a planner."""

UNLABELLED = frozenset({"ConfigMap", "PersistentVolumeClaim", "Node"})
"""Kinds that planners also read where the users made them: watched without a label selector."""


def meta(body: Json) -> Meta:
    """The metadata of one API object."""
    m = body["metadata"]
    owner: Json = next((o for o in m.get("ownerReferences") or () if o.get("controller")), {})
    return Meta(
        name=m["name"],
        namespace=m.get("namespace", ""),
        uid=m["uid"],
        resource_version=m["resourceVersion"],
        generation=m.get("generation", 0),
        labels=m.get("labels") or {},
        annotations=m.get("annotations") or {},
        creation_timestamp=m.get("creationTimestamp", ""),
        deletion_timestamp=m.get("deletionTimestamp"),
        owner_uid=owner.get("uid"),
        owner_kind=owner.get("kind"),
        owner_name=owner.get("name"),
    )


def project(kind: str, body: Json) -> Child:
    """The projection of one API object of `kind` (lists leave the kind out of their items)."""
    kept = KEPT_SPEC.get(kind, ())
    spec = body.get("spec") or {}
    status = body.get("status") or {}
    if kind in KEPT_STATUS:
        status = {name: status[name] for name in KEPT_STATUS[kind] if name in status}
    return Child(
        kind=kind,
        meta=meta(body),
        spec={name: spec[name] for name in kept if name in spec},
        status=status,
        data={**(body.get("binaryData") or {}), **(body.get("data") or {})} if kind == "ConfigMap" else {},
    )

"""Pods: what workers and servers have in common. Restricted security, scratch space, claims, and the user's `pod`.

Everything here builds plain Kubernetes JSON. No pod gets an API token, a writable root file system or a
privilege; the only writable places are the scratch directory, shared memory, and the claims that are written.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubeformer.contract import names
from kubeformer.kit.child import Json
from kubeformer.kit.settings import OperatorSettings

USER_ID = 65532  # the images' user, by number, because the kubelet cannot check a name against runAsNonRoot

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mounts:
    """What a pod sees of the namespace: claims (name to whether it is written) and ConfigMaps, by name."""

    claims: Mapping[str, bool]
    config_maps: frozenset[str]

    @classmethod
    def of(cls, read: Iterable[tuple[str, str]], written: Iterable[tuple[str, str]] = ()) -> "Mounts":
        """From pairs (scheme, name) as they come out of URIs: ("pvc", "mail"), ("configmap", "words")."""
        read, written = tuple(read), tuple(written)
        claims = {name: False for scheme, name in read if scheme == "pvc"}
        claims.update({name: True for scheme, name in written if scheme == "pvc"})
        return cls(claims, frozenset(name for scheme, name in read if scheme == "configmap"))


def environment(pairs: Mapping[str, str]) -> list[Object]:
    """Environment variables in the order of their names, so that the same settings render the same bytes."""
    return [{"name": name, "value": value} for name, value in sorted(pairs.items())]


def container(
    *,
    name: str,
    image: str,
    command: Sequence[str],
    env: Sequence[Json],
    ports: Mapping[str, int],
    resources: Json,
    mounts: Mounts,
    shared_memory: bool,
    settings: OperatorSettings,
) -> Object:
    """The one container of a pod, able to write nowhere but where `volumes` says."""
    volume_mounts: list[Object] = [
        {"name": "settings", "mountPath": names.SETTINGS_DIRECTORY, "readOnly": True},
        {"name": "scratch", "mountPath": names.SCRATCH_DIRECTORY},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if shared_memory:
        volume_mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    for claim, written in sorted(mounts.claims.items()):
        mount: Object = {"name": _volume("claim", claim, mounts), "mountPath": f"{names.CLAIMS_DIRECTORY}/{claim}"}
        volume_mounts.append(mount if written else mount | {"readOnly": True})
    for config_map in sorted(mounts.config_maps):
        path = f"{names.CONFIG_MAPS_DIRECTORY}/{config_map}"
        volume_mounts.append({"name": _volume("map", config_map, mounts), "mountPath": path, "readOnly": True})
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": list(command),
        "env": [dict(e) for e in env],
        "ports": [{"name": n, "containerPort": p, "protocol": "TCP"} for n, p in sorted(ports.items())],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": names.TERMINATION_MESSAGE_PATH,
        "terminationMessagePolicy": "File",
        "volumeMounts": volume_mounts,
    }


def volumes(mounts: Mounts, settings_map: str, shared_memory: str | None = None) -> list[Object]:
    """The volumes that `container` mounts. `shared_memory` is the size of /dev/shm; None: the runtime's own."""
    found: list[Object] = [
        {"name": "settings", "configMap": {"name": settings_map}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if shared_memory is not None:
        found.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}})
    for claim in sorted(mounts.claims):
        found.append({"name": _volume("claim", claim, mounts), "persistentVolumeClaim": {"claimName": claim}})
    for config_map in sorted(mounts.config_maps):
        found.append({"name": _volume("map", config_map, mounts), "configMap": {"name": config_map}})
    return found


def _volume(kind: str, name: str, mounts: Mounts) -> str:
    """A volume's name. Claims may have names of 253 characters with dots, volumes only of 63 without: so by number."""
    ordered = sorted(mounts.claims) if kind == "claim" else sorted(mounts.config_maps)
    return f"{kind}-{ordered.index(name)}"


def pod_spec(
    *,
    containers: Sequence[Json],
    volumes: Sequence[Json],
    settings: OperatorSettings,
    options: Json,
    grace_seconds: int,
    restart_policy: str | None = None,
) -> Object:
    """A pod's spec. `options` are the fields of the user's `pod` that are core/v1's own, in its spelling."""
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": grace_seconds,
        "containers": [dict(c) for c in containers],
        "volumes": [dict(v) for v in volumes],
    }
    if restart_policy is not None:
        spec["restartPolicy"] = restart_policy
    secrets = [{"name": name} for name in settings.image_pull_secrets]
    secrets += [dict(s) for s in options.get("imagePullSecrets") or () if dict(s) not in secrets]
    if secrets:
        spec["imagePullSecrets"] = secrets
    for field in ("nodeSelector", "tolerations", "priorityClassName", "runtimeClassName"):
        if options.get(field):
            spec[field] = options[field]
    return spec


def spread(labels: Mapping[str, str]) -> list[Object]:
    """Pods of one kind prefer different nodes; where nodes are few, they still run."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": dict(labels)},
        }
    ]


def owner_reference(kind: str, name: str, uid: str) -> Object:
    """The reference by which garbage collection takes a child along with its primary."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }

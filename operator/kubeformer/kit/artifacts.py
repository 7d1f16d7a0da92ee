"""Artifacts: what a TrainingJob has published, read from its status. Training goes on from it, serving serves it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubeformer.kit.child import Json


@dataclass(frozen=True, slots=True)
class Published:
    """The newest artifact; `uri` None: there is none yet, and with `failed` there will be none."""

    uri: str | None = None
    digest: str | None = None
    step: int | None = None
    metrics: Sequence[Json] = field(default=())
    data: str | None = None
    job_uid: str = ""
    failed: bool = False
    why: str = ""  # it failed


def published_by(job: Json) -> Published:
    """What the TrainingJob `job` (as the API server stores it) has come to."""
    status = _mapping(job.get("status"))
    uid = str(_mapping(job.get("metadata")).get("uid") or "")
    data = _mapping(status.get("provenance")).get("data")
    for artifact in reversed(_items(status.get("artifacts"))):
        uri, digest, step = artifact.get("uri"), artifact.get("digest"), artifact.get("step")
        if isinstance(uri, str) and uri.startswith("pvc://"):
            return Published(
                uri=uri,
                digest=digest if isinstance(digest, str) and digest else None,
                step=step if isinstance(step, int) else None,
                metrics=_items(artifact.get("metrics")),
                data=data if isinstance(data, str) else None,
                job_uid=uid,
            )
    for condition in _items(status.get("conditions")):
        if condition.get("type") == "Succeeded" and condition.get("status") == "False":
            return Published(job_uid=uid, failed=True, why=str(condition.get("message") or ""))
    return Published(job_uid=uid)


def _mapping(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}


def _items(value: Any) -> Sequence[Json]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []

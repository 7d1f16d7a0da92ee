"""Secrets: which environment variables of the workers come from which Secret.

Credentials reach the tools as the variables that they look for, so the trainer has no notion of a Secret. Only the
kubelet reads Secrets, never the operator. Every key is optional: what a tool lacks, it names itself.
"""

from collections.abc import Collection, Iterator
from typing import Any

from kubeformer.api.training_job import Tracker, TrainingJobSpec
from kubeformer.api.uri import RemoteUri
from kubeformer.training.observe import data_uris, uri_of

_BY_SCHEME = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL"),
    "hf": ("HF_TOKEN", "HF_ENDPOINT"),
    "https": (),
}
_MLFLOW = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_WANDB = ("WANDB_API_KEY", "WANDB_BASE_URL")


def secret_variables(spec: TrainingJobSpec) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The field that names a Secret, the Secret's name, and the variables that are looked for in it."""
    data, model = spec.data, spec.model
    if data is not None and data.secret_ref is not None:
        schemes = {uri.scheme for uri in data_uris(spec).values() if isinstance(uri, RemoteUri)}
        names = tuple(name for scheme in sorted(schemes) for name in _BY_SCHEME[scheme])
        yield "spec.data.secretRef.name", data.secret_ref.name, names
    if model is not None and model.secret_ref is not None and isinstance(uri := uri_of(model.uri), RemoteUri):
        yield "spec.model.secretRef.name", model.secret_ref.name, _BY_SCHEME[uri.scheme]
    for tracker in spec.tracking:
        if tracker.secret_ref is not None:
            yield f"spec.tracking[{tracker.name}].secretRef.name", tracker.secret_ref.name, _variables(tracker)


def _variables(tracker: Tracker) -> tuple[str, ...]:
    return _MLFLOW if tracker.mlflow is not None else _WANDB if tracker.wandb is not None else ()


def credentials(spec: TrainingJobSpec, taken: Collection[str]) -> list[dict[str, Any]]:
    """The variables, in the order of their names; those that the user set in pod.env (`taken`) stay the user's."""
    found = {name: secret for _, secret, names in secret_variables(spec) for name in names if name not in taken}
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name, "optional": True}}}
        for name, secret in sorted(found.items())
    ]

"""Resources of a server: the user's own, and the installation's where none are given."""

from collections.abc import Mapping

from kubeformer.api.model_deployment import ModelDeploymentSpec
from kubeformer.kit.quantities import amount, with_defaults
from kubeformer.kit.settings import OperatorSettings

DEFAULT_REQUESTS = {"cpu": "250m", "memory": "1Gi"}


def server_resources(spec: ModelDeploymentSpec, settings: OperatorSettings) -> dict[str, dict[str, str]]:
    """Requests and limits of one server."""
    return with_defaults(spec.resources.limits, spec.resources.requests, settings.server_requests or DEFAULT_REQUESTS)


def threads(resources: Mapping[str, Mapping[str, str]]) -> int | None:
    """How many threads to compute with: as many as whole cores are allowed; None: as many as there are."""
    cores = amount(resources.get("limits", {}).get("cpu", ""))
    return None if cores is None else max(1, int(cores))

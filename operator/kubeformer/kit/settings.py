"""OperatorSettings: what the installation decides for every job and deployment. Pure; `app.settings` reads it in.

Planners get this object as an argument, so that a plan is a function of what it is given. Each field is a value of
the Helm chart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PullPolicy = Literal["Always", "IfNotPresent", "Never"]


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """The installation's choices. An empty string means "not chosen" wherever text is optional."""

    worker_image: str
    """Image of training workers and of the clean-up after them; `pod.image` takes its place in one job."""

    server_image: str
    """Image of model servers; `pod.image` takes its place in one deployment."""

    vllm_image: str = ""
    """Image of model servers that run vLLM; empty: only deployments that name an image of their own can have it."""

    image_pull_policy: PullPolicy = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()

    storage_uri: str = "pvc://kubeformer"
    """Where models and checkpoints go that name no storage: `pvc://CLAIM[/PATH]`, made in a namespace at first use."""

    storage_class_name: str = ""
    """Storage class of that claim; empty: the cluster's default. It has to offer ReadWriteMany."""

    storage_size: str = "20Gi"

    gateway_url: str = ""
    """Base URL of the gateway, as its users reach it; empty: deployments show their Service's address."""

    gangs: bool = False
    """Whether the API server has scheduling.k8s.io/v1beta1 PodGroups, so that workers start together or not at all."""

    worker_requests: Mapping[str, str] | None = None
    """Requests of a worker that names none; None: 500m of cpu and 1Gi of memory."""

    server_requests: Mapping[str, str] | None = None
    """Requests of a server that names none; None: 250m of cpu and 1Gi of memory."""

    cleanup_tries: int = 3
    """How often a failed clean-up of checkpoints is tried before the TrainingJob is let go without it."""

    cleanup_seconds: int = 300
    """How long one clean-up may take, waiting for a node included, before it counts as failed."""

"""The values of the Helm chart: one model from which values.yaml, its comments and values.schema.json are written.

The schema is closed: a value that nobody reads is refused by `helm install`. What the chart does with each value is in
helm/kubeformer/templates.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from kubeformer.api.common import Resources, Toleration
from kubeformer.api.rules import Model, empty

Image = Annotated[str, Field(min_length=1, max_length=512)]
Port = Annotated[int, Field(ge=1, le=65535)]
PodLabels = Annotated[dict[str, str], Field(max_length=32)]


class Images(Model):
    """Where the images are; full references, best with a digest."""

    operator: Image
    """The light image (operator/Containerfile), for operator and gateway, such as
    registry.example.com/kubeformer-operator:0.1.0."""

    runtime: Image
    """The heavy image (runtime/Containerfile), for training workers and model servers, such as
    registry.example.com/kubeformer-runtime:0.1.0."""

    vllm: Annotated[str, Field(max_length=512)] = ""
    """The image with vLLM (runtime/vllm.Containerfile, or vLLM's own), for model servers with engine.type VLLM; empty:
    only deployments that name an image of their own can have it."""

    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes pull them."""

    pull_secrets: Annotated[list[str], Field(max_length=8)] = Field(default_factory=list)
    """Names of Secrets for pulling. Workers and servers run in their resource's namespace and need the Secret there."""


class ChartStorage(Model):
    """Where models and checkpoints go when a resource names no storage."""

    uri: Annotated[str, Field(max_length=512, pattern=r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^?#]*)?$")] = (
        "pvc://kubeformer"
    )
    """A claim, made ReadWriteMany in a resource's namespace at first use where it is not there yet."""

    storage_class_name: Annotated[str, Field(max_length=253)] = ""
    """Storage class of that claim; empty: the cluster's default. It has to offer ReadWriteMany."""

    size: Annotated[str, Field(min_length=1, max_length=32)] = "20Gi"
    """Size of that claim."""


class Requests(Model):
    """What is set aside for a pod."""

    cpu: Annotated[str, Field(min_length=1, max_length=32)]
    """Cores, such as 500m."""

    memory: Annotated[str, Field(min_length=1, max_length=32)]
    """Memory, such as 1Gi."""


class PodDefaults(Model):
    """What a worker or server gets when its resource names no requests."""

    requests: Requests
    """What is set aside for it."""


class Cleanup(Model):
    """The clean-up of checkpoints after a TrainingJob is deleted."""

    tries: Annotated[int, Field(ge=1, le=100)] = 3
    """How often a failed clean-up is tried before the job is let go without it."""

    seconds: Annotated[int, Field(ge=10, le=86400)] = 300
    """How long one try may take, waiting for a node included."""


def _limits(cpu: str, memory: str, most: str) -> Resources:
    return Resources(requests={"cpu": cpu, "memory": memory}, limits={"memory": most})


class Process(Model):
    """A process of the control plane."""

    replicas: Annotated[int, Field(ge=1, le=16)]
    """Number of pods."""

    resources: Resources
    """What each pod may use, and what is set aside for it."""

    node_selector: PodLabels = Field(default_factory=dict)
    """Labels that a node must have."""

    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(default_factory=list)
    """Taints that the pods put up with."""

    priority_class_name: Annotated[str, Field(max_length=253)] = ""
    """PriorityClass of the pods, such as system-cluster-critical; empty: none."""


class OperatorProcess(Process):
    """The operator."""

    replicas: Annotated[int, Field(ge=1, le=16)] = 1
    """Number of pods; one leads, the others stand by."""

    resources: Resources = _limits("50m", "256Mi", "1Gi")
    """What each pod may use, and what is set aside for it."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much it says."""

    reconcilers: Annotated[int, Field(ge=1, le=64)] = 8
    """Resources worked on at once."""

    writes_per_second: Annotated[int, Field(ge=1, le=10000)] = 50
    """Writes to the API server a second, at most, after a burst of twice as many."""

    progress_status_seconds: Annotated[int, Field(ge=1, le=3600)] = 15
    """Least time between two writes of a job's progress to its status."""


class Service(Model):
    """How the gateway is reached."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the gateway's Service."""

    port: Port = 80
    """Port of the gateway's Service."""

    annotations: Annotated[dict[str, str], Field(max_length=32)] = Field(default_factory=dict)
    """Annotations of the gateway's Service, as load balancers want them."""


class GatewayProcess(Process):
    """The gateway: one URL for all deployments."""

    replicas: Annotated[int, Field(ge=1, le=16)] = 2
    """Number of pods."""

    resources: Resources = _limits("50m", "128Mi", "512Mi")
    """What each pod may use, and what is set aside for it."""

    url: Annotated[str, Field(max_length=512)] = ""
    """Base URL of the gateway as users reach it, for status.url; empty: that of its Service, inside the cluster."""

    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = 60
    """How long a gateway that is to stop may go on with the answers under way."""

    service: Service = Service()
    """How it is reached."""


class Crds(Model):
    """The definitions of our kinds."""

    enabled: bool = True
    """Install and upgrade them with the chart. They stay when the chart is uninstalled, and all resources with them."""


class NetworkPolicy(Model):
    """Who may talk with operator and gateway, and with whom they may."""

    enabled: bool = True
    """Make NetworkPolicies; they work where the cluster's network enforces them."""

    api_server_ports: Annotated[list[Port], Field(min_length=1, max_length=8)] = Field(
        default_factory=lambda: [443, 6443]
    )
    """Ports on which the API server listens, by its Service and by its own addresses."""


class ChartValues(Model):
    """The values of the chart."""

    images: Images
    """Where the images are; full references, best with a digest."""

    storage: ChartStorage = ChartStorage()
    """Where models and checkpoints go when a resource names no storage."""

    workers: PodDefaults = PodDefaults(requests=Requests(cpu="500m", memory="1Gi"))
    """What a training worker gets when its TrainingJob names no requests."""

    servers: PodDefaults = PodDefaults(requests=Requests(cpu="250m", memory="1Gi"))
    """What a model server gets when its ModelDeployment names no requests."""

    cleanup: Cleanup = Cleanup()
    """The clean-up of checkpoints after a TrainingJob is deleted."""

    gangs: bool = False
    """Start workers together or not at all; needs PodGroups (scheduling.k8s.io/v1beta1) in the API server."""

    operator: OperatorProcess = OperatorProcess()
    """The operator."""

    gateway: GatewayProcess = GatewayProcess()
    """The gateway: one URL for all deployments."""

    crds: Crds = Crds()
    """The definitions of our kinds."""

    network_policy: NetworkPolicy = NetworkPolicy()
    """Who may talk with operator and gateway, and with whom they may."""

    global_: Annotated[dict[str, Any], Field(alias="global")] = empty(dict)
    """What Helm hands down from a chart that has this one as a part; nothing here reads it."""

"""Resources: the kinds the control plane speaks of, and where the API server serves them."""

from dataclasses import dataclass

from kubeformer.contract.names import API_VERSION
from kubeformer.kit.view import Key


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind. `namespaced` is False for what has no namespace."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of all objects, of those of a namespace, of one, or of a part of one."""
        parts = ["/api" if "/" not in self.api_version else "/apis", self.api_version]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def path_of(self, key: Key, subresource: str | None = None) -> str:
        """The URL path of one object."""
        return self.path(key.namespace, key.name, subresource)


TRAINING_JOB = Resource(API_VERSION, "TrainingJob", "trainingjobs")
MODEL_DEPLOYMENT = Resource(API_VERSION, "ModelDeployment", "modeldeployments")
LEASE = Resource("coordination.k8s.io/v1", "Lease", "leases")
EVENT = Resource("events.k8s.io/v1", "Event", "events")
POD_GROUP = Resource("scheduling.k8s.io/v1beta1", "PodGroup", "podgroups")

RESOURCES: dict[str, Resource] = {
    resource.kind: resource
    for resource in (
        TRAINING_JOB,
        MODEL_DEPLOYMENT,
        LEASE,
        EVENT,
        POD_GROUP,
        Resource("v1", "Pod", "pods"),
        Resource("v1", "Service", "services"),
        Resource("v1", "ConfigMap", "configmaps"),
        Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
        Resource("v1", "Node", "nodes", namespaced=False),
        Resource("batch/v1", "Job", "jobs"),
        Resource("apps/v1", "Deployment", "deployments"),
        Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
        Resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices"),
    )
}

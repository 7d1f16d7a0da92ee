"""PlannerSettings: what the installer decides and planners read: images, storage, defaults.

`app.settings.OperatorSettings` extends it with what only the running process needs; the chart writes both as one
JSON file. Attributes are snake_case here and camelCase in the file.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from kubeformer.contract.base import Document

PullPolicy = Literal["Always", "IfNotPresent", "Never"]


class Storage(Document):
    """Where models and checkpoints go when a resource does not say: `pvc://CLAIM[/PATH]`.

    The claim is made in the resource's namespace at first use, ReadWriteMany, where it is not there yet.
    """

    uri: str = Field(
        default="pvc://kubeformer", pattern=r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^?#]*)?$", max_length=512
    )
    storage_class_name: str | None = Field(default=None, max_length=253)  # None: the cluster's default class
    size: str = Field(default="20Gi", max_length=32)


class Resources(Document):
    """Requests and limits of a container that does not name its own, as core/v1 has them."""

    requests: Mapping[str, str] = Field(default_factory=dict)
    limits: Mapping[str, str] = Field(default_factory=dict)


class PodDefaults(Document):
    """What a pod gets where its resource says nothing."""

    resources: Resources = Resources(requests={"cpu": "500m", "memory": "1Gi"}, limits={"memory": "4Gi"})


class PlannerSettings(Document):
    """See the module's docstring."""

    worker_image: str = Field(max_length=512)  # training pods
    server_image: str = Field(max_length=512)  # serving pods
    image_pull_policy: PullPolicy = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()  # names; each namespace has its own Secrets
    storage: Storage = Storage()
    worker_defaults: PodDefaults = PodDefaults()
    server_defaults: PodDefaults = PodDefaults()
    gateway_url: str | None = Field(default=None, max_length=512)  # what status.url of a ModelDeployment begins with

"""Settings: the one JSON file that the chart writes and `python -m kubeformer.app` reads.

Its path is in the environment variable KUBEFORMER_OPERATOR_SETTINGS. An unknown key, a wrong type or a missing
image is an error at start, in a sentence; nothing is read and then ignored. `for_planners` is the part
that decides what jobs and deployments look like; the rest is about the process itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from kubeformer.contract.base import Document
from kubeformer.contract.names import PORT_OPERATOR_HEALTH
from kubeformer.kit.settings import OperatorSettings, PullPolicy

ENV_OPERATOR_SETTINGS = "KUBEFORMER_OPERATOR_SETTINGS"


class SettingsError(Exception):
    """The settings cannot be used; the message says which field and what to do."""


class Storage(Document):
    """Where models and checkpoints go when a resource names no storage.

    The claim is made in the resource's namespace at first use, ReadWriteMany, where it is not there yet.
    """

    uri: str = Field(
        default="pvc://kubeformer", pattern=r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^?#]*)?$", max_length=512
    )
    storage_class_name: str = Field(default="", max_length=253)  # empty: the cluster's default class
    size: str = Field(default="20Gi", min_length=1, max_length=32)


class Resources(Document):
    """Requests of a container whose resource names none, as core/v1 has them."""

    requests: dict[str, str]


class PodDefaults(Document):
    """What a pod gets where its resource says nothing."""

    resources: Resources


class Cleanup(Document):
    """The clean-up of checkpoints after a TrainingJob is deleted."""

    tries: int = Field(default=3, ge=1, le=100)
    seconds: int = Field(default=300, ge=10, le=86_400)  # how long one try may take


class LeaderElection(Document):
    """The Lease that lets one replica write while the others watch.

    A leader that could not renew for `renew_deadline_seconds` stops writing; another takes over
    `lease_seconds` after the last renewal it saw, so the first must be the smaller one.
    """

    namespace: str = Field(default="kubeformer-system", min_length=1, max_length=63)
    name: str = Field(default="kubeformer-operator", min_length=1, max_length=63)
    lease_seconds: float = Field(default=15, ge=1, le=600)
    renew_deadline_seconds: float = Field(default=10, ge=0.5, le=600)
    retry_seconds: float = Field(default=2, ge=0.1, le=60)


class Settings(Document):
    """Everything the operator process is told from outside."""

    worker_image: str = Field(min_length=1, max_length=512)  # training pods
    server_image: str = Field(min_length=1, max_length=512)  # serving pods
    vllm_image: str = Field(default="", max_length=512)  # serving pods that run vLLM; empty: there is none
    image_pull_policy: PullPolicy = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()  # names; each namespace has its own Secrets
    storage: Storage = Storage()
    gateway_url: str = Field(default="", max_length=512)  # as users reach it; what status.url begins with
    gangs: bool = False  # whether the API server has scheduling.k8s.io/v1beta1 PodGroups
    worker_defaults: PodDefaults = PodDefaults(resources=Resources(requests={"cpu": "500m", "memory": "1Gi"}))
    server_defaults: PodDefaults = PodDefaults(resources=Resources(requests={"cpu": "250m", "memory": "1Gi"}))
    cleanup: Cleanup = Cleanup()

    namespaces: tuple[str, ...] = ()  # what is served; empty: all of the cluster
    leader_election: LeaderElection = LeaderElection()
    health_port: int = Field(default=PORT_OPERATOR_HEALTH, ge=0, le=65535)  # 0: any, on loopback
    reconcilers: int = Field(default=8, ge=1, le=64)  # keys worked on at once
    writes_per_second: float = Field(default=50, gt=0, le=10_000)
    write_burst: int = Field(default=100, ge=1, le=10_000)
    poll_seconds: float = Field(default=3, ge=0.1, le=60)  # between two GET /progress of one pod
    polls_at_once: int = Field(default=32, ge=1, le=1024)
    progress_status_seconds: float = Field(default=15, ge=0, le=3600)  # least time between two writes of mere progress
    audit_seconds: float = Field(default=60, ge=1, le=86_400)  # between two comparisons of what is known with what is
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def for_planners(self) -> OperatorSettings:
        """What planners get to see."""
        return OperatorSettings(
            worker_image=self.worker_image,
            server_image=self.server_image,
            vllm_image=self.vllm_image,
            image_pull_policy=self.image_pull_policy,
            image_pull_secrets=self.image_pull_secrets,
            storage_uri=self.storage.uri,
            storage_class_name=self.storage.storage_class_name,
            storage_size=self.storage.size,
            gateway_url=self.gateway_url,
            gangs=self.gangs,
            worker_requests=self.worker_defaults.resources.requests,
            server_requests=self.server_defaults.resources.requests,
            cleanup_tries=self.cleanup.tries,
            cleanup_seconds=self.cleanup.seconds,
        )


def load(environment: Mapping[str, str]) -> Settings:
    """The settings from the file that the environment names.

    Raises SettingsError when the variable is missing, the file cannot be read, or its content is refused.
    """
    path = environment.get(ENV_OPERATOR_SETTINGS)
    if not path:
        raise SettingsError(f"the environment variable {ENV_OPERATOR_SETTINGS} must name the operator's settings file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"the operator's settings file {path} cannot be read: {error.strerror}") from error
    try:
        settings = Settings.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise SettingsError(f"the operator's settings file {path} is not JSON: {error}") from error
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"the operator's settings file {path} is refused: {found}") from error
    election = settings.leader_election
    if election.renew_deadline_seconds >= election.lease_seconds:
        raise SettingsError(
            f"the operator's settings file {path} is refused: leaderElection.renewDeadlineSeconds "
            f"({election.renew_deadline_seconds:g}) must be below leaderElection.leaseSeconds "
            f"({election.lease_seconds:g})"
        )
    return settings

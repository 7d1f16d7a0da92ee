"""OperatorSettings: the one JSON file that the chart writes and `python -m kubeformer.app` reads.

Its path is in the environment variable KUBEFORMER_OPERATOR_SETTINGS. An unknown key, a wrong type or a missing image is an
error at start, in a sentence; nothing is read and then ignored.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from kubeformer.contract.base import Document
from kubeformer.contract.names import PORT_OPERATOR_HEALTH
from kubeformer.kit.settings import PlannerSettings

ENV_OPERATOR_SETTINGS = "KUBEFORMER_OPERATOR_SETTINGS"


class SettingsError(Exception):
    """The settings cannot be used; the message says which field and what to do."""


class LeaderElection(Document):
    """The Lease that lets one replica write while the others watch.

    A leader that could not renew for `renew_deadline_seconds` stops writing; another takes over
    `lease_seconds` after the last renewal it saw, so the first must be the smaller one.
    """

    namespace: str = Field(default="kubeformer-system", max_length=63)
    name: str = Field(default="kubeformer-operator", max_length=63)
    lease_seconds: int = Field(default=15, ge=3, le=600)
    renew_deadline_seconds: int = Field(default=10, ge=2, le=599)
    retry_seconds: int = Field(default=2, ge=1, le=60)


class OperatorSettings(PlannerSettings):
    """Everything the operator process is told from outside."""

    namespaces: tuple[str, ...] = ()  # empty: all of the cluster
    leader_election: LeaderElection = LeaderElection()
    health_port: int = Field(default=PORT_OPERATOR_HEALTH, ge=0, le=65535)  # 0: any free one
    reconcilers: int = Field(default=8, ge=1, le=64)  # keys worked on at once
    writes_per_second: float = Field(default=50, gt=0, le=10_000)
    write_burst: int = Field(default=100, ge=1, le=10_000)
    poll_seconds: float = Field(default=3, ge=0.1, le=60)  # between two GET /progress of one pod
    polls_at_once: int = Field(default=32, ge=1, le=1024)
    progress_status_seconds: float = Field(default=15, ge=0, le=3600)  # least time between two writes of mere progress
    audit_seconds: float = Field(default=60, ge=1, le=86_400)  # between two comparisons of what is known with what is
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load(environment: Mapping[str, str]) -> OperatorSettings:
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
        settings = OperatorSettings.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise SettingsError(f"the operator's settings file {path} is not JSON: {error}") from error
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"the operator's settings file {path} is refused: {found}") from error
    election = settings.leader_election
    if election.renew_deadline_seconds >= election.lease_seconds:
        raise SettingsError(
            f"leaderElection.renewDeadlineSeconds ({election.renew_deadline_seconds}) must be below "
            f"leaderElection.leaseSeconds ({election.lease_seconds})"
        )
    return settings

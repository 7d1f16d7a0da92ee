"""Outlook: how the servers of a ModelDeployment are doing, in numbers, one word and one sentence."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from kubeformer.api.conditions import DeploymentReason
from kubeformer.contract import names
from kubeformer.kit.child import Child
from kubeformer.kit.troubles import container_statuses, state_of, stuck
from kubeformer.serving.observe import Observed

PASSED_ON = frozenset(
    {DeploymentReason.MODEL_NOT_FOUND, DeploymentReason.MODEL_INVALID, DeploymentReason.SETTINGS_INVALID}
)
"""Reasons that a server may give itself in its termination message."""

_ERROR = re.compile(r"\b\w*(Error|Exception): \S")
_SEE_ABOVE = re.compile("See root cause above")  # vLLM's parent process, of what its child has said before


@dataclass(frozen=True, slots=True)
class Counts:
    """Servers: all, those that answer, those of the newest template. `current`: the Deployment has seen its spec."""

    total: int = 0
    ready: int = 0
    updated: int = 0
    current: bool = False
    stuck: bool = False  # no progress for the Deployment's progressDeadlineSeconds


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a server of the revision asked for does not get ready."""

    reason: str
    message: str


def counts(deployment: Child | None) -> Counts:
    """What the Deployment's status says."""
    if deployment is None:
        return Counts()
    status = deployment.status
    conditions = status.get("conditions")
    late = any(
        isinstance(c, Mapping) and c.get("reason") == "ProgressDeadlineExceeded"
        for c in (conditions if isinstance(conditions, list | tuple) else ())
    )
    return Counts(
        total=_int(status.get("replicas")),
        ready=_int(status.get("readyReplicas")),
        updated=_int(status.get("updatedReplicas")),
        current=_int(status.get("observedGeneration")) >= deployment.meta.generation,
        stuck=late,
    )


def trouble(seen: Observed, revision: str | None) -> Trouble | None:
    """What keeps servers of a revision (None: of any) from being ready: the first that says something."""
    for pod in seen.pods:
        if pod.meta.deletion_timestamp is not None or not _is_of(pod, revision):
            continue
        found = _crashed(pod) or _stuck(pod)
        if found is not None:
            return found
    return None


def _is_of(pod: Child, revision: str | None) -> bool:
    return revision is None or pod.meta.labels.get(names.LABEL_REVISION) == revision


def _stuck(pod: Child) -> Trouble | None:
    found = stuck(pod)
    if found is None:
        return None
    reason, message = found
    return Trouble(known_reason(reason) or DeploymentReason.CONTAINER_FAILED, f"Server {pod.meta.name}: {message}")


def _crashed(pod: Child) -> Trouble | None:
    for status in container_statuses(pod):
        if status.get("ready") is True or state_of(status, "running"):
            continue
        ended = state_of(status, "terminated") or state_of(status, "terminated", "lastState")
        code = ended.get("exitCode")
        if not isinstance(code, int) or code in (0, int(names.ExitCode.STOPPED)):
            continue
        reason, words = last_words(str(ended.get("message") or ""))
        if not words:
            killed = ended.get("reason") == "OOMKilled"
            words = "it used more memory than its limit" if killed else f"it ended with exit code {code}; see its logs"
        known = known_reason(reason)
        if known in PASSED_ON and known is not None:
            return Trouble(known, words)
        return Trouble(DeploymentReason.CONTAINER_FAILED, f"Server {pod.meta.name} stops again and again: {words}")
    return None


def last_words(message: str) -> tuple[str, str]:
    """(reason, sentence) of a termination message: {"reason", "message"}, within "failure" or not, or plain text.

    Of plain text, which may be the end of a log, it is the last line that names an error; without one, the last line.
    """
    try:
        body = json.loads(message) if message.startswith("{") else None
    except ValueError:
        body = None
    if isinstance(body, Mapping):
        inner = body.get("failure")
        said = inner if isinstance(inner, Mapping) else body
        return str(said.get("reason") or ""), str(said.get("message") or "")
    lines = [line for line in message.strip().splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.search(line) and not _SEE_ABOVE.search(line)]
    return "", (errors or lines or [""])[-1][-512:]


def known_reason(word: str) -> DeploymentReason | None:
    """The reason that a word stands for; None for words that the API does not have."""
    return next((reason for reason in DeploymentReason if reason == word), None)


def _int(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

"""Troubles: why a pod does not get going, read from its status: no node, no image, or no container."""

from collections.abc import Iterator, Mapping

from kubeformer.kit.child import Child, Json

_PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_CREATE = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"})
_LONGEST = 512


def container_statuses(pod: Child) -> Iterator[Json]:
    """The statuses of a pod's containers, those that run first among them, as far as they can be read."""
    for field in ("initContainerStatuses", "containerStatuses"):
        statuses = pod.status.get(field)
        for status in statuses if isinstance(statuses, list | tuple) else ():
            if isinstance(status, Mapping):
                yield status


def state_of(status: Json, kind: str, field: str = "state") -> Json:
    """`waiting`, `running` or `terminated` of a container's state (or its lastState); empty if it is not in it."""
    state = status.get(field)
    found = state.get(kind) if isinstance(state, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def is_true(pod: Child, kind: str) -> bool:
    """Whether a condition of the pod is True."""
    return any(c.get("type") == kind and c.get("status") == "True" for c in _conditions(pod))


def stuck(pod: Child) -> tuple[str, str] | None:
    """(reason, sentence); the reason is ImagePullFailed, ContainerFailed or Unschedulable. None: it is on its way."""
    for status in container_statuses(pod):
        waiting = state_of(status, "waiting")
        why, words = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
        if why in _PULL:
            image = status.get("image") or ""
            return "ImagePullFailed", f"the image {image} cannot be pulled: {words or why}"[:_LONGEST]
        if why in _CREATE:
            return "ContainerFailed", f"the container cannot be started: {words or why}"[:_LONGEST]
    for condition in _conditions(pod):
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return "Unschedulable", str(condition.get("message") or "no node has room")[:_LONGEST]
    return None


def _conditions(pod: Child) -> Iterator[Json]:
    conditions = pod.status.get("conditions")
    for condition in conditions if isinstance(conditions, list | tuple) else ():
        if isinstance(condition, Mapping):
            yield condition

"""Capacity: whether any node could hold one pod, before anything starts. What others use at the moment is not asked."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

from kubeformer.kit.child import Child, Json
from kubeformer.kit.findings import Finding
from kubeformer.kit.quantities import amount

INSUFFICIENT_CAPACITY = "InsufficientCapacity"


def needed(resources: Json) -> dict[str, str]:
    """What the scheduler will ask for one pod: requests, and limits where a request is left out."""
    asked = dict(resources.get("limits") or {})
    asked.update(resources.get("requests") or {})
    return {name: str(quantity) for name, quantity in asked.items()}


def capacity_finding(resources: Json, given: Json, nodes: Sequence[Child], field: str) -> Finding | None:
    """A finding if no node, empty as it may be, has room for one pod that asks for `resources`.

    `given` is what the user wrote of them, at `field`, for example spec.workers.resources; the rest follows from the
    model's size and the installation. Without any node in view nothing is known, and nothing is found.
    """
    if not nodes:
        return None
    asked = needed(resources)
    usable = [node for node in nodes if not node.spec.get("unschedulable")]
    for name in sorted(asked):
        want = amount(asked[name])
        largest = max((_has(node, name) for node in usable), default=Decimal(0))
        if want is not None and want > largest:
            return Finding(INSUFFICIENT_CAPACITY, _sentence(field, name, given, asked[name], largest), waits=True)
    if not any(all((amount(asked[name]) or 0) <= _has(node, name) for name in asked) for node in usable):
        listed = ", ".join(f"{name}: {asked[name]}" for name in sorted(asked))
        return Finding(
            INSUFFICIENT_CAPACITY,
            f"{field} asks for {listed} in one pod, and no single node has all of it: ask for less in a pod, or add "
            "a node that has it.",
            waits=True,
        )
    return None


def _has(node: Child, name: str) -> Decimal:
    allocatable = node.status.get("allocatable")
    return (amount(allocatable.get(name, 0)) or Decimal(0)) if isinstance(allocatable, Mapping) else Decimal(0)


def _sentence(field: str, name: str, given: Json, asked: str, largest: Decimal) -> str:
    if name not in needed(given):
        return (
            f"{field}.requests.{name} is left out, and one pod is taken to need {asked}, but the largest node has "
            f"{_human(name, largest)}: set it to what you know to be enough, make the model smaller, or add a node."
        )
    where = "limits" if name in (given.get("limits") or {}) else "requests"
    device = name not in ("cpu", "memory", "ephemeral-storage")
    there = "no node has any" if not largest else f"the largest node has {_human(name, largest)}"
    out = "leave it out to run on CPU" if device else "ask for less"
    return f"{field}.{where} asks for {name}: {asked}, and {there}: {out}, or add a node that has it."


def _human(name: str, value: Decimal) -> str:
    if name in ("memory", "ephemeral-storage"):
        return f"{int(value // 2**20)}Mi"
    return f"{value.normalize():f}"

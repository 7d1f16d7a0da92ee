"""What the loop itself says in a primary's status: that the API server refuses what the plan asks for.

A pod template that admission rejects, a quota that is used up: the planner cannot know, the user must. The
loop lays these conditions over the planner's status as long as the refusal lasts.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kubeformer.kit.child import Json

REASON = "Rejected"
LONGEST_MESSAGE = 1024


def timestamp(now: float) -> str:
    """Seconds since the epoch as Kubernetes writes times."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def with_refusal(
    status: Json, primary: Json, verdicts: Sequence[tuple[str, str]], message: str, now: float
) -> Mapping[str, Any]:
    """The status with one condition for each verdict (type, status); all others stay.

    A condition that already had this status keeps its transition time.
    """
    stored = {c["type"]: c for c in (primary.get("status") or {}).get("conditions") or ()}
    ours = {}
    for kind, verdict in verdicts:
        before = stored.get(kind)
        unchanged = before is not None and before.get("status") == verdict
        ours[kind] = {
            "type": kind,
            "status": verdict,
            "reason": REASON,
            "message": message[:LONGEST_MESSAGE],
            "lastTransitionTime": before["lastTransitionTime"] if before and unchanged else timestamp(now),
            "observedGeneration": primary["metadata"].get("generation", 0),
        }
    conditions = [ours.pop(c["type"], c) for c in status.get("conditions") or ()]
    return {**status, "conditions": [*conditions, *ours.values()]}


def is_refused(primary: Json) -> bool:
    """Whether the stored status already tells of a refusal."""
    return any(c.get("reason") == REASON for c in (primary.get("status") or {}).get("conditions") or ())

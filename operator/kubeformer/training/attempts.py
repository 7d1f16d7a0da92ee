"""Attempts: the times in which workers ran, kept in the status from one look to the next.

An attempt is open while workers run. It is closed by the end of the job, by suspension, and by every fault, which opens
the next. Faults between two looks count as one attempt, but all of them count as restarts.
"""

from collections.abc import Mapping
from typing import Any

from kubeformer.api.conditions import JobReason
from kubeformer.kit.instants import rfc3339, seconds_of
from kubeformer.training.observe import Observed
from kubeformer.training.outlook import Outlook, failure, restarts

MOST_ATTEMPTS = 10

Object = dict[str, Any]


def attempts(seen: Observed, look: Outlook, step: int | None, from_step: int | None) -> list[Object]:
    """`status.attempts`. `step` is the last one known, `from_step` that of the last checkpoint."""
    kept = stored_attempts(seen)
    now = rfc3339(seen.now)
    running = any(worker.running for worker in seen.workers)
    if kept and "endTime" not in kept[-1]:
        reason = _closing(seen, look)
        if reason is None:
            return kept
        end = rfc3339(look.ended_at) if look.ended_at is not None else now
        kept[-1] = {**kept[-1], "endTime": max(end, str(kept[-1].get("startTime") or end)), "reason": reason}
        if step is not None:
            kept[-1]["toStep"] = step
    if running and look.ended is None and look.reason not in (JobReason.SUSPENDED, JobReason.SUSPENDING):
        opened: Object = {"number": _next(kept), "startTime": now}
        if from_step is not None:
            opened["fromStep"] = from_step
        kept.append(opened)
    return kept[-MOST_ATTEMPTS:]


def _closing(seen: Observed, look: Outlook) -> str | None:
    """Why the open attempt is over; None: it is not."""
    if look.ended is not None or look.reason == JobReason.SUSPENDED:
        return look.reason
    workers = seen.stored.get("workers")
    before = workers.get("restarts") if isinstance(workers, Mapping) else 0
    if restarts(seen) > (before if isinstance(before, int) else 0):
        last = failure(seen.workers)
        return last.reason[:256] if last is not None and last.reason else str(JobReason.RESTARTING)
    return None


def stored_attempts(seen: Observed) -> list[Object]:
    """The attempts of the stored status that can be read."""
    found = seen.stored.get("attempts")
    return [
        dict(attempt)
        for attempt in (found if isinstance(found, list | tuple) else ())
        if isinstance(attempt, Mapping) and isinstance(attempt.get("number"), int)
    ]


def _next(kept: list[Object]) -> int:
    return min(max((attempt["number"] for attempt in kept), default=0) + 1, 2**31 - 1)


def seconds_used(seen: Observed) -> float:
    """How long the job was active before the last suspension: what is gone of activeDeadlineSeconds.

    The Job's own clock begins anew whenever it is resumed.
    """
    used, since_suspension = 0.0, 0.0
    for attempt in stored_attempts(seen):
        begin, end = seconds_of(attempt.get("startTime")), seconds_of(attempt.get("endTime"))
        if begin is not None and end is not None:
            since_suspension += max(0.0, end - begin)
        if attempt.get("reason") == JobReason.SUSPENDED:
            used, since_suspension = used + since_suspension, 0.0
    return used

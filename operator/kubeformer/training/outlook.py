"""Outlook: what can be said of a started TrainingJob in one word and one sentence, from its Job and its workers.

An ordered chain, the weightiest first: how it ended, that it is held, what keeps workers from running, that they
are silent or hang, and else what they say they do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kubeformer.api.conditions import JobReason
from kubeformer.contract import names
from kubeformer.contract.progress import Failure, Progress
from kubeformer.kit.child import Child, Json
from kubeformer.kit.instants import seconds_of
from kubeformer.kit.troubles import stuck
from kubeformer.training.figures import heartbeat, speaker
from kubeformer.training.observe import Observed, Worker

SILENT_SECONDS = 120.0
LAST_WORDS_SECONDS = 20.0  # how long the pods' last messages are waited for once the Job has ended

_PHASES = {
    "Starting": (JobReason.STARTING, "Workers are up and find each other."),
    "Preparing": (JobReason.PREPARING, "Data is read, cleaned and tokenised."),
    "Training": (JobReason.TRAINING, "Steps are taken."),
    "Evaluating": (JobReason.EVALUATING, "The model is scored on the validation data."),
    "Checkpointing": (JobReason.CHECKPOINTING, "Training state is being saved."),
    "Publishing": (JobReason.PUBLISHING, "The model is being written."),
    "Succeeded": (JobReason.PUBLISHING, "The model is written; workers end."),
    "Stopped": (JobReason.RESTARTING, "Workers have saved a checkpoint and stopped; they start again from there."),
    "Failed": (JobReason.RESTARTING, "Workers start again after a fault, from the last checkpoint."),
}
WORKING = frozenset(reason for reason, _ in _PHASES.values()) - {JobReason.RESTARTING}


@dataclass(frozen=True, slots=True)
class Outlook:
    """`ended` is True for success, False for failure, None while it goes on; `moving` whether training moves on."""

    reason: str
    message: str
    ended: bool | None = None
    moving: bool = False
    ended_at: float | None = None


def outlook(seen: Observed) -> Outlook:
    """What to say of a job that was started."""
    for look in (_ended, _held, _between, _stuck, _not_all_up, _silent, _hanging):
        if (found := look(seen)) is not None:
            return found
    said = speaker([worker for worker in seen.workers if worker.alive])
    if said is None or said.progress is None:
        return Outlook(JobReason.STARTING, "Workers are up and find each other.", moving=True)
    reason, message = _PHASES[said.progress.phase]
    if reason is JobReason.STARTING and restarts(seen):
        reason, message = JobReason.RESTARTING, "Workers start again after a fault, from the last checkpoint."
    return Outlook(reason, message, moving=reason in WORKING)


def known_reason(word: str) -> JobReason | None:
    """The reason that a word stands for; None for words that the API does not have."""
    return next((reason for reason in JobReason if reason == word), None)


def job_condition(job: Child | None, kind: str) -> Json | None:
    """A condition of the Job that is True."""
    conditions = job.status.get("conditions") if job is not None else None
    for condition in conditions if isinstance(conditions, list | tuple) else ():
        if isinstance(condition, Mapping) and condition.get("type") == kind and condition.get("status") == "True":
            return condition
    return None


def restarts(seen: Observed) -> int:
    """Faults so far: each restarts all ranks, so that several workers count the same one. Never fewer than before."""
    workers = seen.stored.get("workers")
    before = workers.get("restarts") if isinstance(workers, Mapping) else 0
    failed = seen.job.status.get("failed") if seen.job is not None else 0
    inside = max((w.progress.restarts for w in seen.workers if w.progress is not None), default=0)
    counts = [value for value in (before, failed, inside) if isinstance(value, int)]
    return max(0, min(max(counts, default=0), 2**31 - 1))


def exhausted(seen: Observed) -> bool:
    """Whether a worker has given up because recovery.maxRestarts are used up: the others need not try again."""
    return any(
        worker.exit_code is not None
        and worker.progress is not None
        and worker.progress.failure is not None
        and worker.progress.failure.reason == names.RESTARTS_EXHAUSTED
        for worker in seen.workers
    )


def failure(workers: tuple[Worker, ...]) -> Failure | None:
    """Why workers failed, in their own words: first of one that called the job invalid, then the newest."""
    ended = [w for w in workers if w.exit_code not in (None, 0, int(names.ExitCode.STOPPED))]
    ended.sort(key=lambda w: (w.exit_code == names.ExitCode.INVALID, w.heard or 0.0), reverse=True)
    for worker in ended:
        if worker.progress is not None and worker.progress.failure is not None:
            return worker.progress.failure
    for worker in ended:
        if worker.message.strip() and worker.progress is None:
            return Failure(reason=str(JobReason.FAILED), message=worker.message.strip()[-512:])
    if ended:
        code = ended[0].exit_code
        hint = " (killed: most often it used more memory than its limit)" if code == 137 else ""
        return Failure(
            reason=str(JobReason.FAILED), message=f"Worker {ended[0].index or 0} ended with exit code {code}{hint}."
        )
    return None


def _ended(seen: Observed) -> Outlook | None:
    complete, failed = job_condition(seen.job, "Complete"), job_condition(seen.job, "Failed")
    condition = complete or failed
    if condition is None:
        return None
    at = seconds_of(condition.get("lastTransitionTime")) or seconds_of(condition.get("lastProbeTime"))
    if any(w.alive for w in seen.workers) and seen.now < (at if at is not None else seen.now) + LAST_WORDS_SECONDS:
        reason = JobReason.PUBLISHING if complete is not None else JobReason.RESTARTING
        return Outlook(reason, "Workers end.", moving=complete is not None)
    if complete is not None:
        return Outlook(JobReason.COMPLETED, "Training is done and the model is published.", ended=True, ended_at=at)
    why, message = _why_failed(seen, condition)
    return Outlook(why, message, ended=False, ended_at=at)


def _why_failed(seen: Observed, condition: Json) -> tuple[str, str]:
    last = failure(seen.workers)
    words = last.message if last is not None else str(condition.get("message") or "")
    match condition.get("reason"):
        case "DeadlineExceeded" if not exhausted(seen):
            limit = seen.spec.active_deadline_seconds if seen.spec is not None else None
            return JobReason.DEADLINE_EXCEEDED, (
                f"The job was active for longer than spec.activeDeadlineSeconds ({limit}): raise it, or set more aside "
                "for the workers."
            )
        case "BackoffLimitExceeded":
            limit = seen.spec.recovery.max_restarts if seen.spec is not None else None
            return JobReason.MAX_RESTARTS_EXCEEDED, (
                f"There were more faults than spec.recovery.maxRestarts ({limit}). The last one: {words}"
            )
    reason = known_reason(last.reason) if last is not None else None
    return reason or JobReason.FAILED, words or "The job has failed."


def _held(seen: Observed) -> Outlook | None:
    if seen.spec is None or not seen.spec.suspend:
        return None
    if any(worker.alive for worker in seen.workers) or _count(seen.job, "active"):
        return Outlook(JobReason.SUSPENDING, "Workers save a checkpoint and stop, because spec.suspend is true.")
    return Outlook(JobReason.SUSPENDED, "spec.suspend is true: set it to false to go on from the last checkpoint.")


def _between(seen: Observed) -> Outlook | None:
    if seen.job is not None and seen.job.meta.deletion_timestamp is None:
        return None
    if seen.job is not None:
        return Outlook(JobReason.RESTARTING, "The Job is being deleted; another will go on from the last checkpoint.")
    return Outlook(JobReason.WAITING_FOR_WORKERS, "Workers are being made.")


def _stuck(seen: Observed) -> Outlook | None:
    for worker in seen.workers:
        if worker.phase != "Pending":
            continue
        if (found := stuck(worker.pod)) is not None:
            reason, message = found
            unbound = sorted(
                name for name, c in seen.claims.items() if c is not None and c.status.get("phase") == "Pending"
            )
            if reason == "Unschedulable" and unbound:
                return Outlook(
                    JobReason.WAITING_FOR_STORAGE,
                    f"The claim {unbound[0]} is not bound to a volume yet: {message}",
                )
            words = f"Worker {worker.index if worker.index is not None else worker.pod.meta.name}: {message}"
            return Outlook(known_reason(reason) or JobReason.WAITING_FOR_WORKERS, words)
    return None


def _not_all_up(seen: Observed) -> Outlook | None:
    wanted = seen.spec.workers.replicas if seen.spec is not None else len(seen.workers)
    up = ready(seen)
    done = max(_count(seen.job, "succeeded"), sum(worker.phase == "Succeeded" for worker in seen.workers))
    if done >= wanted:
        return Outlook(JobReason.PUBLISHING, "The model is written; workers have ended.", moving=True)
    if up + done >= wanted:
        return None
    if restarts(seen) and any(w.exit_code is not None for w in seen.workers):
        last = failure(seen.workers)
        why = f" The last fault: {last.message}" if last is not None else ""
        return Outlook(JobReason.RESTARTING, f"{up} of {wanted} workers run; the rest start again after a fault.{why}")
    return Outlook(JobReason.WAITING_FOR_WORKERS, f"{up} of {wanted} workers run.")


def ready(seen: Observed) -> int:
    """Workers that run."""
    return len({w.index if w.index is not None else w.pod.meta.uid for w in seen.workers if w.running})


def last_heard(seen: Observed) -> float | None:
    """When anything was last heard of the workers: by the poller, by an earlier operator, or that a pod started."""
    progress = seen.stored.get("progress")
    times = [
        heartbeat(seen),
        seconds_of(progress.get("updateTime")) if isinstance(progress, Mapping) else None,
        *(seconds_of(worker.pod.status.get("startTime")) for worker in seen.workers if worker.running),
    ]
    return max((time for time in times if time is not None), default=None)


def _silent(seen: Observed) -> Outlook | None:
    heard = last_heard(seen)
    if heard is None or seen.now <= heard + SILENT_SECONDS:
        return None
    return Outlook(
        JobReason.SILENT,
        "Workers run and do not answer at /progress; nothing is known of their progress. Look at their logs, and at "
        "network policies that keep the operator from them.",
    )


def _hanging(seen: Observed) -> Outlook | None:
    said = speaker([worker for worker in seen.workers if worker.running])
    beat = said.progress.heartbeat_time if said is not None and said.progress is not None else None
    if beat is None or seen.spec is None or seen.now <= beat + seen.spec.recovery.hang_timeout_seconds:
        return None
    return Outlook(
        JobReason.HANGING,
        f"Training has shown no sign of life for spec.recovery.hangTimeoutSeconds "
        f"({seen.spec.recovery.hang_timeout_seconds}): its processes are started again.",
    )


def _count(job: Child | None, field: str) -> int:
    value = job.status.get(field) if job is not None else 0
    return value if isinstance(value, int) else 0


def spoken(seen: Observed) -> Progress | None:
    """What the job says of itself, through whichever worker speaks for it."""
    said = speaker(seen.workers)
    return said.progress if said is not None else None

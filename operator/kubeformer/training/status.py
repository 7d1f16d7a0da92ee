"""Status: all that a TrainingJob's status says, put together from outlook, figures and attempts.

Conditions keep their time while their status stays. `only_figures` tells a change worth writing at once from one
that may wait: figures move with every step, and the phases of training follow each other quickly.
"""

from collections.abc import Mapping
from typing import Any

from kubeformer.api.conditions import JobCondition, JobReason, Status, updated
from kubeformer.contract import names
from kubeformer.kit.child import Json
from kubeformer.kit.findings import Finding
from kubeformer.kit.instants import rfc3339
from kubeformer.kit.plan import Event
from kubeformer.training import figures
from kubeformer.training.attempts import attempts
from kubeformer.training.observe import Observed, training_uris
from kubeformer.training.outlook import WORKING, Outlook, ready, restarts

LONGEST_MESSAGE = 1024
INVALID_REASONS = frozenset(
    {
        JobReason.DATA_NOT_FOUND,
        JobReason.DATA_INVALID,
        JobReason.FIELD_NOT_FOUND,
        JobReason.MODEL_NOT_FOUND,
        JobReason.MODEL_INVALID,
        JobReason.SETTINGS_INVALID,
    }
)
_FIGURES = ("progress", "metrics", "epochs")
_GOOD_NEWS = frozenset({JobReason.SUSPENDED, JobReason.COMPLETED, JobReason.WAITING_FOR_MODEL})

Object = dict[str, Any]
Verdict = tuple[Status, str, str]

ACCEPTED: Verdict = ("True", JobReason.ACCEPTED, "Everything the job refers to was found.")


def waiting(seen: Observed, finding: Finding | None) -> Object:
    """The status of a job that has not started: held by a finding, or by suspension alone."""
    valid: Verdict = ACCEPTED
    held: tuple[str, str] = (JobReason.SUSPENDED, "spec.suspend is true: set it to false to start.")
    if finding is not None:
        held = (finding.reason, finding.message)
        if not finding.waits:
            valid = ("False", *held)
    status = dict(seen.stored)
    suspended = seen.spec is not None and seen.spec.suspend
    status["conditions"] = _conditions(
        seen,
        {
            JobCondition.SUCCEEDED: ("Unknown", *held),
            JobCondition.VALID: valid,
            JobCondition.ADMITTED: ("False", *held),
            JobCondition.RUNNING: ("False", *held),
            JobCondition.PROGRESSING: ("False", *held),
            JobCondition.CHECKPOINTED: _checkpointed(seen.stored.get("checkpoint")),
            JobCondition.SUSPENDED: _suspended(suspended, None),
            JobCondition.FINISHED: ("False", JobReason.NOT_FINISHED, "The job has not started yet."),
        },
    )
    status["observedGeneration"] = seen.meta.generation
    return status


def refused(seen: Observed) -> Object:
    """The status of a started job whose spec cannot be read any more: that, and all else as it was."""
    verdict: Verdict = ("False", JobReason.SETTINGS_INVALID, seen.refusal)
    others = [dict(c) for c in seen.conditions if c.get("type") != JobCondition.VALID]
    return dict(seen.stored) | {"conditions": [*others, *_conditions(seen, {JobCondition.VALID: verdict})]}


def admitted(seen: Observed, resolved: Object) -> Object:
    """The status that lets a job in: what was resolved is written down before anything is made from it."""
    status = dict(seen.stored)
    starting = (JobReason.WAITING_FOR_WORKERS, "Workers are being made.")
    status["conditions"] = _conditions(
        seen,
        {
            JobCondition.SUCCEEDED: ("Unknown", *starting),
            JobCondition.VALID: ACCEPTED,
            JobCondition.ADMITTED: ("True", JobReason.ACCEPTED, "Workers may run."),
            JobCondition.RUNNING: ("False", *starting),
            JobCondition.PROGRESSING: ("False", *starting),
            JobCondition.CHECKPOINTED: _checkpointed(seen.stored.get("checkpoint")),
            JobCondition.SUSPENDED: _suspended(False, None),
            JobCondition.FINISHED: ("False", JobReason.NOT_FINISHED, "The job goes on."),
        },
    )
    assert seen.spec is not None
    wanted = seen.spec.workers.replicas
    status |= {
        "observedGeneration": seen.meta.generation,
        "startTime": seen.stored.get("startTime") or rfc3339(seen.now),
        "selector": f"{names.LABEL_TRAINING_JOB}={seen.name},{names.LABEL_COMPONENT}=worker",
        "resolved": resolved,
        "provenance": _provenance(seen, resolved),
        "workers": {"desired": wanted, "ready": 0, "restarts": 0, "summary": f"0/{wanted}"},
    }
    return status


def running(seen: Observed, look: Outlook, resolved: Object) -> Object:
    """The status of a job that was started, up to and including its end."""
    assert seen.spec is not None
    said = figures.speaker(seen.workers)
    status = dict(seen.stored)
    facts = figures.facts(seen, said)
    status["resolved"] = {**resolved, "facts": facts} if facts else dict(resolved)
    provenance = _provenance(seen, resolved, facts)
    for name, value in {
        "progress": figures.progress(seen, said),
        "metrics": figures.metrics(seen, said),
        "epochs": figures.epochs(seen, said),
        "checkpoint": figures.checkpoint(seen),
        "artifacts": figures.artifacts(seen),
        "provenance": provenance,
    }.items():
        if value:
            status[name] = value
    desired = 0 if look.ended is not None or seen.spec.suspend else seen.spec.workers.replicas
    up = ready(seen)
    status["workers"] = {"desired": desired, "ready": up, "restarts": restarts(seen), "summary": f"{up}/{desired}"}
    step = (status.get("progress") or {}).get("step")
    checkpoint = status.get("checkpoint")
    found = attempts(seen, look, step, checkpoint.get("step") if isinstance(checkpoint, Mapping) else None)
    if found:
        status["attempts"] = found
    status.setdefault("startTime", rfc3339(seen.now))
    status["observedGeneration"] = seen.meta.generation
    if look.ended is not None:
        status["completionTime"] = rfc3339(look.ended_at if look.ended_at is not None else seen.now)
        _settle(status, succeeded=look.ended)
    status["conditions"] = _conditions(seen, _verdicts(seen, look, up, status))
    return status


def _settle(status: Object, *, succeeded: bool) -> None:
    """What is over has no time left, and a success is complete."""
    progress = {k: v for k, v in (status.get("progress") or {}).items() if k not in ("eta", "estimatedCompletionTime")}
    if succeeded:
        progress["phase"] = "Succeeded"
    elif progress:
        progress["phase"] = "Failed"
    if progress:
        status["progress"] = progress


def _verdicts(seen: Observed, look: Outlook, up: int, status: Json) -> dict[str, Verdict]:
    assert seen.spec is not None
    said = (look.reason, look.message)
    wanted = seen.spec.workers.replicas
    suspended = look.reason in (JobReason.SUSPENDED, JobReason.SUSPENDING)
    summary: Verdict = ("Unknown", *said)
    if look.ended is not None:
        message = _success(seen, status) if look.ended else look.message
        summary = ("True" if look.ended else "False", look.reason, message)
    everyone: Verdict = ("True", JobReason.ACCEPTED, f"All {wanted} workers run.")
    return {
        JobCondition.SUCCEEDED: summary,
        JobCondition.VALID: ("False", *said) if look.ended is False and look.reason in INVALID_REASONS else ACCEPTED,
        JobCondition.ADMITTED: ("False", *said) if suspended else ("True", JobReason.ACCEPTED, "Workers may run."),
        JobCondition.RUNNING: everyone if up == wanted and look.ended is None and not suspended else ("False", *said),
        JobCondition.PROGRESSING: ("True" if look.moving else "False", *said),
        JobCondition.CHECKPOINTED: _checkpointed(status.get("checkpoint")),
        JobCondition.SUSPENDED: _suspended(seen.spec.suspend and look.ended is None, look),
        JobCondition.FINISHED: ("True", *said)
        if look.ended is not None
        else ("False", JobReason.NOT_FINISHED, "The job goes on."),
    }


def _success(seen: Observed, status: Json) -> str:
    artifacts = status.get("artifacts")
    newest = artifacts[-1] if artifacts else {}
    uri = newest.get("uri") or (status.get("resolved") or {}).get("outputUri")
    step = f" after {newest['step']} steps" if newest.get("step") else ""
    return f"The model is published at {uri}{step}."


def _checkpointed(checkpoint: object) -> Verdict:
    if isinstance(checkpoint, Mapping) and "step" in checkpoint:
        return "True", JobReason.CHECKPOINT_SAVED, f"The newest is of step {checkpoint['step']}."
    return "False", JobReason.NO_CHECKPOINT, "None was saved yet."


def _suspended(suspended: bool, look: Outlook | None) -> Verdict:
    if not suspended:
        return "False", JobReason.NOT_SUSPENDED, "spec.suspend is false."
    if look is not None and look.reason == JobReason.SUSPENDING:
        return "False", JobReason.SUSPENDING, look.message
    return "True", JobReason.SUSPENDED, "spec.suspend is true; no worker runs."


def _provenance(seen: Observed, resolved: Json, facts: list[Object] | None = None) -> Object:
    assert seen.spec is not None
    spec = seen.spec
    digest = next((fact["value"] for fact in facts or () if fact["name"] == "dataDigest"), None)
    found = {
        "image": resolved.get("image"),
        "data": ", ".join(training_uris(spec))[:1100] or None,
        "dataDigest": digest,
        "base": resolved.get("baseUri"),
        "baseDigest": resolved.get("baseDigest"),
        "seed": spec.training.seed,
        "worldSize": spec.workers.replicas * spec.workers.processes_per_worker,
    }
    return {name: value for name, value in found.items() if value is not None}


def _conditions(seen: Observed, verdicts: Mapping[str, Verdict]) -> list[Object]:
    now = rfc3339(seen.now)
    before = [c for c in seen.conditions if isinstance(c.get("lastTransitionTime"), str)]
    return [
        updated(before, kind, state, reason, message[:LONGEST_MESSAGE], seen.meta.generation, now)
        for kind, (state, reason, message) in verdicts.items()
    ]


def only_figures(before: Json, after: Json) -> bool:
    """Whether the change may wait a little: it is one of figures, or of what workers that train are just doing."""
    return _slow(before) == _slow(after) and bool(before)


def _slow(status: Json) -> Object:
    slow = {name: value for name, value in status.items() if name not in _FIGURES}
    conditions = status.get("conditions")
    slow["conditions"] = [
        {**c, "reason": "Working", "message": ""} if c.get("reason") in WORKING else dict(c)
        for c in (conditions if isinstance(conditions, list | tuple) else ())
        if isinstance(c, Mapping)
    ]
    return slow


def events(seen: Observed, status: Json) -> tuple[Event, ...]:
    """What is worth an event: a new word in the summary, but for the phases that come and go within training."""
    old = seen.stored_condition(JobCondition.SUCCEEDED)
    new = next((c for c in status.get("conditions") or () if c["type"] == JobCondition.SUCCEEDED), None)
    if new is None or (new["reason"], new["status"]) == (old.get("reason"), old.get("status")):
        return ()
    if new["status"] == "Unknown" and new["reason"] in WORKING:
        if old.get("reason") in WORKING:
            return ()
        return (Event("Normal", "Started", "Workers are up."),)
    if new["reason"] in (JobReason.WAITING_FOR_WORKERS, JobReason.SUSPENDING, JobReason.PENDING):
        return ()
    return (Event("Normal" if new["reason"] in _GOOD_NEWS else "Warning", new["reason"], new["message"]),)

"""Status: all that a ModelDeployment's status says. Conditions keep their time while their status stays."""

from collections.abc import Mapping, Sequence
from typing import Any

from kubeformer.api.conditions import DeploymentCondition, DeploymentReason, Status, updated
from kubeformer.api.engine import engine_of
from kubeformer.contract import names
from kubeformer.kit.child import Json
from kubeformer.kit.findings import Finding
from kubeformer.kit.instants import rfc3339
from kubeformer.kit.plan import Event
from kubeformer.serving.build import Rendered
from kubeformer.serving.observe import Model, Observed
from kubeformer.serving.outlook import Counts, Trouble, counts, trouble

LONGEST_MESSAGE = 1024
MOST_REVISIONS = 10

Object = dict[str, Any]
Verdict = tuple[Status, str, str]

_MODEL_REASONS = frozenset(
    {
        DeploymentReason.MODEL_NOT_FOUND,
        DeploymentReason.MODEL_INVALID,
        DeploymentReason.MODEL_FAILED,
        DeploymentReason.WAITING_FOR_MODEL,
        DeploymentReason.CLAIM_NOT_FOUND,
    }
)


def status(
    seen: Observed, finding: Finding | None, model: Model | None, rendered: Rendered | None, image: str
) -> Object:
    """The whole status. `rendered` is what was applied, None where a finding keeps it from being."""
    there = counts(seen.deployment)
    wanted = seen.spec.replicas if seen.spec is not None else 0
    hindered = trouble(seen, rendered.revision if rendered is not None else None)
    result: Object = dict(seen.stored)
    result["observedGeneration"] = seen.meta.generation
    result["selector"] = ",".join(
        f"{label}={value}"
        for label, value in (
            (names.LABEL_MODEL_DEPLOYMENT, seen.name),
            (names.LABEL_COMPONENT, "server"),
        )
    )
    result["replicas"], result["readyReplicas"] = there.total, there.ready
    result["url"] = _url(seen)
    result["servedNames"] = _served_names(seen)
    if seen.spec is not None:
        result["engine"], why = engine_of(seen.spec)
        result["engineReason"] = why[:256]
    if rendered is not None and model is not None:
        result["resolved"] = {"image": image, "modelUri": str(model.uri)[:1100]}
        if model.digest is not None:
            result["resolved"]["modelDigest"] = model.digest[:128]
        lineage = _lineage(seen, model)
        if lineage is not None:
            result["lineage"] = lineage
        else:
            result.pop("lineage", None)
        result["revisions"] = _revisions(seen, rendered, model, there)
    result["conditions"] = _conditions(seen, _verdicts(seen, finding, model, rendered, there, wanted, hindered))
    return result


def _verdicts(
    seen: Observed,
    finding: Finding | None,
    model: Model | None,
    rendered: Rendered | None,
    there: Counts,
    wanted: int,
    hindered: Trouble | None,
) -> dict[str, Verdict]:
    return {
        DeploymentCondition.READY: _ready(seen, finding, there, wanted, hindered),
        DeploymentCondition.VALID: _valid(seen, finding),
        DeploymentCondition.MODEL_READY: _model_ready(finding, model, hindered),
        DeploymentCondition.AVAILABLE: _available(there, wanted, hindered, finding),
        DeploymentCondition.PROGRESSING: _progressing(finding, there, wanted, hindered, rendered),
    }


def _ready(seen: Observed, finding: Finding | None, there: Counts, wanted: int, hindered: Trouble | None) -> Verdict:
    if finding is not None:
        return "False", finding.reason, finding.message
    if seen.deployment is None or (not there.current and not there.ready):
        return "False", DeploymentReason.LOADING, "Servers are being made."
    if not there.current:
        return "False", DeploymentReason.ROLLING_OUT, "A new revision is being rolled out."
    if wanted == 0:
        if there.total:
            return "False", DeploymentReason.ROLLING_OUT, "Servers finish their answers and stop."
        return "True", DeploymentReason.SCALED_TO_ZERO, "spec.replicas is 0: nothing answers."
    rolled_out = there.updated >= wanted and there.total == there.updated
    if rolled_out and there.ready >= wanted:
        if len(seen.taken) == len(set(seen.claimed_names)):
            return "True", DeploymentReason.NAME_TAKEN, _taken(seen)
        return "True", DeploymentReason.SERVING, f"{there.ready} of {wanted} replicas answer."
    if hindered is not None:
        return "False", hindered.reason, hindered.message
    if rolled_out and there.ready:
        return "False", DeploymentReason.UNDER_STRENGTH, f"{there.ready} of {wanted} replicas answer."
    if there.stuck:
        return "False", DeploymentReason.ROLLOUT_STUCK, _slow(there)
    if there.ready:
        return "False", DeploymentReason.ROLLING_OUT, f"{there.updated} of {wanted} replicas have the new revision."
    return "False", DeploymentReason.LOADING, f"Replicas load the model; {there.ready} of {wanted} answer."


def _slow(there: Counts) -> str:
    rest = f"{there.ready} older ones serve on" if there.ready else "nothing answers"
    return f"New servers did not get ready in 10 minutes, and {rest}: look at the logs of the pods."


def _valid(seen: Observed, finding: Finding | None) -> Verdict:
    if finding is not None and not finding.waits:
        return "False", finding.reason, finding.message
    if seen.taken:
        return "False", DeploymentReason.NAME_TAKEN, _taken(seen)
    return "True", DeploymentReason.ACCEPTED, "Everything the deployment refers to was found."


def _taken(seen: Observed) -> str:
    listed = ", ".join(f"{name} (by {key.namespace}/{key.name})" for name, key in sorted(seen.taken.items()))
    return (
        f"spec.model: an older deployment claims {listed}. Requests for {seen.key.namespace}/{seen.name} "
        "come here all the same; for a short name, choose another."
    )


def _model_ready(finding: Finding | None, model: Model | None, hindered: Trouble | None) -> Verdict:
    if finding is not None and finding.reason in _MODEL_REASONS:
        return "False", finding.reason, finding.message
    if hindered is not None and hindered.reason in _MODEL_REASONS:
        return "False", hindered.reason, hindered.message
    if model is None:
        return "Unknown", DeploymentReason.PENDING, "The model is not known yet."
    words = f"The model is at {model.uri}."
    if model.recorded:
        words += " The TrainingJob that published it says nothing of it any more; it is served as recorded."
    return "True", DeploymentReason.MODEL_FOUND, words


def _available(there: Counts, wanted: int, hindered: Trouble | None, finding: Finding | None) -> Verdict:
    if there.ready:
        reason = DeploymentReason.SERVING if there.ready >= wanted else DeploymentReason.UNDER_STRENGTH
        return "True", reason, f"{there.ready} of {wanted} replicas answer."
    if wanted == 0:
        return "False", DeploymentReason.SCALED_TO_ZERO, "spec.replicas is 0: nothing answers."
    why = finding.message if finding is not None else hindered.message if hindered is not None else ""
    return "False", DeploymentReason.NO_REPLICA_READY, f"No replica answers. {why}".strip()


def _progressing(
    finding: Finding | None, there: Counts, wanted: int, hindered: Trouble | None, rendered: Rendered | None
) -> Verdict:
    if finding is not None:
        return "False", finding.reason, finding.message
    if rendered is not None and there.current and there.updated >= wanted == there.total and there.ready >= wanted:
        return "False", DeploymentReason.ROLLED_OUT, "All replicas run the revision that the spec asks for."
    if hindered is not None:
        return "False", DeploymentReason.ROLLOUT_STUCK, hindered.message
    if there.stuck:
        return "False", DeploymentReason.ROLLOUT_STUCK, _slow(there)
    return "True", DeploymentReason.ROLLING_OUT, f"{there.updated} of {wanted} replicas have the revision asked for."


def _url(seen: Observed) -> str:
    base = seen.settings.gateway_url.rstrip("/")
    own = f"http://{seen.name}.{seen.key.namespace}.svc:{names.PORT_SERVER}"
    return f"{base or own}/v1"[:1100]


def _served_names(seen: Observed) -> list[str]:
    own = [name for name in dict.fromkeys(seen.claimed_names) if name not in seen.taken]
    return [*own, f"{seen.key.namespace}/{seen.name}"]


def _lineage(seen: Observed, model: Model) -> Object | None:
    ref = seen.spec.model.training_job_ref if seen.spec is not None else None
    if ref is None:
        return None
    if model.published is None:
        stored = seen.stored.get("lineage")
        return dict(stored) if isinstance(stored, Mapping) else {"trainingJob": ref.name}
    said = model.published
    found: Object = {
        "trainingJob": ref.name,
        "uid": said.job_uid[:64],
        "step": said.step,
        "digest": said.digest,
        "data": said.data,
        "metrics": [dict(figure) for figure in said.metrics][:16],
    }
    return {name: value for name, value in found.items() if value not in (None, [], "")}


def _revisions(seen: Observed, rendered: Rendered, model: Model, there: Counts) -> list[Object]:
    """The revisions in the order of their coming, with the pods that each has now."""
    stored = seen.stored.get("revisions")
    before = [
        dict(r)
        for r in (stored if isinstance(stored, list | tuple) else ())
        if isinstance(r, Mapping) and r.get("name")
    ]
    if not any(revision["name"] == rendered.revision for revision in before):
        before.append({"name": rendered.revision})
    else:  # a roll-back makes an old revision the newest again
        before.sort(key=lambda revision: revision["name"] == rendered.revision)
    ready_by_revision: dict[str, list[bool]] = {}
    for pod in seen.pods:
        if pod.meta.deletion_timestamp is None and pod.status.get("phase") not in ("Failed", "Succeeded"):
            name = pod.meta.labels.get(names.LABEL_REVISION, "")
            ready_by_revision.setdefault(name, []).append(_is_ready(pod.status.get("conditions")))
    all_ready = sum(sum(flags) for flags in ready_by_revision.values())
    found = []
    for revision in before[-MOST_REVISIONS:]:
        flags = ready_by_revision.get(str(revision["name"]), [])
        entry: Object = {
            **revision,
            "replicas": len(flags),
            "ready": sum(flags),
            "weight": round(100 * sum(flags) / all_ready) if all_ready else 0,
        }
        if revision["name"] == rendered.revision and model.digest is not None:
            entry["digest"] = model.digest[:128]
        found.append(entry)
    return found


def _is_ready(conditions: object) -> bool:
    return any(
        isinstance(c, Mapping) and c.get("type") == "Ready" and c.get("status") == "True"
        for c in (conditions if isinstance(conditions, Sequence) else ())
    )


def _conditions(seen: Observed, verdicts: Mapping[str, Verdict]) -> list[Object]:
    now = rfc3339(seen.now)
    before = [c for c in seen.conditions if isinstance(c.get("lastTransitionTime"), str)]
    return [
        updated(before, kind, state, reason, message[:LONGEST_MESSAGE], seen.meta.generation, now)
        for kind, (state, reason, message) in verdicts.items()
    ]


_QUIET = frozenset({DeploymentReason.LOADING, DeploymentReason.ROLLING_OUT, DeploymentReason.PENDING})
_GOOD_NEWS = frozenset({DeploymentReason.SERVING, DeploymentReason.SCALED_TO_ZERO, DeploymentReason.WAITING_FOR_MODEL})


def events(seen: Observed, new_status: Json) -> tuple[Event, ...]:
    """What is worth an event: a new word in the summary, but for the steps of an ordinary roll-out."""
    old = next((c for c in seen.conditions if c.get("type") == DeploymentCondition.READY), {})
    new = next((c for c in new_status.get("conditions") or () if c["type"] == DeploymentCondition.READY), None)
    if (
        new is None
        or new["reason"] in _QUIET
        or (new["reason"], new["status"]) == (old.get("reason"), old.get("status"))
    ):
        return ()
    return (Event("Normal" if new["reason"] in _GOOD_NEWS else "Warning", new["reason"], new["message"]),)

"""Removal: what is left to do for a TrainingJob that is being deleted.

Children go by garbage collection, once their owner is gone. Checkpoints lie on a claim that stays, because it holds
published models: so a finalizer keeps the TrainingJob until its workers have stopped and a short Job has removed
them. It never keeps it for ever: a claim that is gone has nothing to clean, and a clean-up that fails as often as
the installation allows, or does not come to an end in time, is given up with an event that names what was left.
"""

from collections.abc import Mapping

from kubeformer.api.uri import PvcUri
from kubeformer.contract import names
from kubeformer.kit.instants import seconds_of
from kubeformer.kit.plan import Apply, Delete, Event, Plan
from kubeformer.kit.view import Key
from kubeformer.training.build import cleanup_job
from kubeformer.training.observe import Observed, uri_of
from kubeformer.training.outlook import job_condition

FINALIZER = f"{names.GROUP}/checkpoints"


def removal(seen: Observed) -> Plan:
    """Stop the workers, remove the checkpoints, let go."""
    if FINALIZER not in seen.finalizers:
        return Plan()
    resolved = seen.stored.get("resolved")
    resolved = resolved if isinstance(resolved, Mapping) else {}
    place = uri_of(resolved.get("checkpointUri"))
    if not isinstance(place, PvcUri) or not _usable(seen, place.claim) or not _has_run(seen):
        return _let_go(seen)
    since = seconds_of(seen.meta.deletion_timestamp)
    limit = (since if since is not None else seen.now) + 2.0 * seen.settings.cleanup_seconds
    if job_condition(seen.cleanup, "Complete") is not None:
        return _let_go(seen)
    if job_condition(seen.cleanup, "Failed") is not None or seen.now >= limit:
        why = "failed too often" if seen.now < limit else "did not end in time"
        return _let_go(seen, f"The clean-up {why}: checkpoints may be left at {place}; remove them by hand.")
    actions: list[Apply | Delete] = []
    if seen.job is not None and seen.job.meta.deletion_timestamp is None:
        key = Key("Job", seen.key.namespace, seen.name)
        actions.append(Delete(key, seen.job.meta.uid, propagation="Foreground"))
    elif seen.job is None and not seen.lingering and seen.cleanup is None:
        model = uri_of(resolved.get("outputUri"))
        model = model if isinstance(model, PvcUri) and _usable(seen, model.claim) else None
        options = seen.spec.pod.dump() if seen.spec is not None else {}
        actions.append(Apply(cleanup_job(place, model, options, seen)))
    return Plan(
        actions=tuple(actions),
        look_again_at=min(limit, seen.now + 30.0) if seen.now < limit else None,
        depends_on=(Key("PersistentVolumeClaim", seen.key.namespace, place.claim),),
    )


def _has_run(seen: Observed) -> bool:
    """Whether there can be anything to remove: a job whose workers never ran has written nothing."""
    return bool(seen.stored.get("attempts") or seen.stored.get("checkpoint") or any(w.running for w in seen.workers))


def _usable(seen: Observed, claim: str) -> bool:
    found = seen.claims.get(claim)
    return found is not None and found.meta.deletion_timestamp is None


def _let_go(seen: Observed, warning: str | None = None) -> Plan:
    """Release the finalizer, and take the clean-up along."""
    actions: tuple[Delete, ...] = ()
    if seen.cleanup is not None and seen.cleanup.meta.deletion_timestamp is None:
        key = Key("Job", seen.key.namespace, seen.cleanup.meta.name)
        actions = (Delete(key, seen.cleanup.meta.uid, propagation="Background"),)
    return Plan(
        actions=actions,
        events=(Event("Warning", "CleanupFailed", warning),) if warning else (),
        finalizers=tuple(name for name in seen.finalizers if name != FINALIZER),
    )

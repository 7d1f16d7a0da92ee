"""Plan: what to do next for one TrainingJob. From whatever is there it names the next writes, and no more.

    nothing yet -> checks -> let in (status first) -> ConfigMap, Service, Job -> follow -> end -> delete after a while

What was resolved is written into the status before anything is made from it, so that a crash between any two
writes is mended by planning again. A Job is never changed where Kubernetes would refuse it: what its template
cannot take (new checkpoint settings, another operator's template) waits until it has no workers and is then made anew.
"""

from collections.abc import Mapping
from typing import Any

from kubeformer.api.conditions import JobCondition
from kubeformer.api.training_job import TrainingJobSpec
from kubeformer.api.uri import PvcUri
from kubeformer.contract import names
from kubeformer.kit.child import Child
from kubeformer.kit.findings import first_finding
from kubeformer.kit.instants import seconds_of
from kubeformer.kit.plan import Apply, Delete, Plan
from kubeformer.kit.settings import OperatorSettings
from kubeformer.kit.view import Key, View
from kubeformer.training import build, status
from kubeformer.training.attempts import seconds_used
from kubeformer.training.checks import CHECKS
from kubeformer.training.document import settings_document
from kubeformer.training.observe import Observed, observe, uri_of
from kubeformer.training.outlook import (
    LAST_WORDS_SECONDS,
    SILENT_SECONDS,
    Outlook,
    exhausted,
    job_condition,
    last_heard,
    outlook,
)
from kubeformer.training.removal import FINALIZER, removal
from kubeformer.training.resolve import resolve

LOOK_AGAIN_SECONDS = 60.0  # a waiting job is woken by news; this is for news that got lost

Object = dict[str, Any]


def reconcile(view: View, key: Key, settings: OperatorSettings, now: float) -> Plan:
    """The next step for the TrainingJob `key`. Never raises, whatever the view holds."""
    raw = view.primary(key)
    if raw is None:
        return Plan()
    seen = observe(view, key, raw, settings, now)
    if seen.meta.deletion_timestamp is not None:
        return removal(seen)
    if seen.stored_condition(JobCondition.FINISHED).get("status") == "True":
        return _after_the_end(seen)
    if not seen.started:
        return _before_the_start(seen)
    if seen.spec is None:
        return _cannot_be_read(seen)
    return _under_way(seen, seen.spec)


def _before_the_start(seen: Observed) -> Plan:
    finding = first_finding(CHECKS, seen)
    if finding is not None:
        new = status.waiting(seen, finding)
        again = seen.now + LOOK_AGAIN_SECONDS if finding.waits or finding.depends_on else None
        return _say(seen, new, depends_on=finding.depends_on, look_again_at=again)
    if seen.spec is not None and seen.spec.suspend:
        return _say(seen, status.waiting(seen, None))
    return _say(seen, status.admitted(seen, resolve(seen)), finalizers=_with_finalizer(seen))


def _cannot_be_read(seen: Observed) -> Plan:
    """A started job whose spec this operator does not understand: it says so, and touches nothing."""
    return _say(seen, status.refused(seen))


def _under_way(seen: Observed, spec: TrainingJobSpec) -> Plan:
    stored = seen.stored.get("resolved")
    if not isinstance(stored, Mapping) or not isinstance(uri_of(stored.get("checkpointUri")), PvcUri):
        # The status was lost (a backup without status, a hand that cleared it). Resolving again finds the same.
        return _say(seen, status.admitted(seen, resolve(seen)), finalizers=_with_finalizer(seen))
    resolved = {name: value for name, value in stored.items() if name != "facts"}
    document = settings_document(spec, resolved, name=seen.name, namespace=seen.key.namespace, uid=seen.meta.uid)
    config_map = build.settings_map(document, seen)
    resolved["settingsHash"] = _hash_in_use(seen, config_map)
    look = outlook(seen)
    actions = () if look.ended is not None else _actions(seen, spec, resolved, config_map)
    new = status.running(seen, look, resolved)
    following = look.ended is None
    return _say(
        seen,
        new,
        actions=actions,
        finalizers=_with_finalizer(seen),
        look_again_at=_when_to_look(seen, look, spec),
        poll=_to_poll(seen) if following else (),
        coalesce=status.only_figures(seen.stored, new),
    )


def _actions(seen: Observed, spec: TrainingJobSpec, resolved: Object, config_map: Object) -> tuple[Apply | Delete, ...]:
    """What is to be written so that workers run, or stop."""
    if seen.stranger is not None:
        return ()  # a Job of an earlier life is going; or one of somebody else, which is not ours to touch
    backoff_limit = 0 if exhausted(seen) else spec.recovery.max_restarts
    limit = spec.active_deadline_seconds
    deadline = None if limit is None else max(1, int(limit - seconds_used(seen)))
    wanted = build.job(
        spec, resolved, config_map, seen, suspend=spec.suspend, backoff_limit=backoff_limit, deadline=deadline
    )
    job = seen.job
    if job is None:
        if spec.suspend or seen.lingering:
            return ()  # workers of the Job before still end
        return (*_storage(seen, resolved), *_surroundings(seen, spec, config_map), Apply(wanted))
    if job.meta.deletion_timestamp is not None:
        return ()
    same_template = (
        job.meta.annotations.get(build.ANNOTATION_TEMPLATE_HASH)
        == wanted["metadata"]["annotations"][build.ANNOTATION_TEMPLATE_HASH]
    )
    drifted = {
        name
        for name in ("suspend", "backoffLimit", "activeDeadlineSeconds", "parallelism", "completions")
        if (job.spec.get(name) or None) != (wanted["spec"].get(name) or None)
    }
    if not same_template and "suspend" in drifted:
        # Stopping by deletion stops workers just as well; going on needs the new template, and finds no workers.
        return (_delete(job),)
    if not same_template:
        return (Apply(build.service(seen)),)
    surroundings = _surroundings(seen, spec, config_map)
    changes = (Apply(wanted),) if drifted else ()
    return (*surroundings, *changes, *_outdated(seen, config_map))


def _storage(seen: Observed, resolved: Object) -> tuple[Apply, ...]:
    """The installation's claim, where it is used and not there yet."""
    shared = uri_of(seen.settings.storage_uri)
    places = [uri_of(resolved.get("checkpointUri")), uri_of(resolved.get("outputUri"))]
    used = {place.claim for place in places if isinstance(place, PvcUri)}
    if not isinstance(shared, PvcUri) or shared.claim not in used or seen.claims.get(shared.claim) is not None:
        return ()
    return (Apply(build.storage_claim(shared.claim, seen), only_if_absent=True),)


def _surroundings(seen: Observed, spec: TrainingJobSpec, config_map: Object) -> tuple[Apply, ...]:
    there = {child.meta.name for child in seen.config_maps}
    found = [] if config_map["metadata"]["name"] in there else [Apply(config_map)]
    found.append(Apply(build.service(seen)))
    if seen.settings.gangs:
        found.append(Apply(build.pod_group(spec, seen)))
    return tuple(found)


def _outdated(seen: Observed, config_map: Object) -> tuple[Delete, ...]:
    """Settings that no pod reads any more."""
    current = config_map["metadata"]["name"]
    return tuple(
        Delete(Key("ConfigMap", child.meta.namespace, child.meta.name), child.meta.uid, child.meta.resource_version)
        for child in seen.config_maps
        if child.meta.name != current and child.meta.deletion_timestamp is None
    )


def _delete(job: Child) -> Delete:
    """In the foreground: the Job stays in view until its workers have ended."""
    return Delete(Key("Job", job.meta.namespace, job.meta.name), job.meta.uid, propagation="Foreground")


def _hash_in_use(seen: Observed, config_map: Object) -> str:
    """The settings that the workers were given, which may be older than what the spec says now."""
    used = seen.job.meta.annotations.get(names.ANNOTATION_SETTINGS_HASH) if seen.job is not None else None
    return used or str(config_map["metadata"]["name"]).rpartition("-")[2]


def _to_poll(seen: Observed) -> tuple[tuple[str, str], ...]:
    """Running workers, by uid and address."""
    found = []
    for worker in seen.workers:
        address = worker.pod.status.get("podIP")
        if worker.phase == "Running" and isinstance(address, str) and address:
            found.append((worker.pod.meta.uid, address))
    return tuple(found)


def _when_to_look(seen: Observed, look: Outlook, spec: TrainingJobSpec) -> float | None:
    """When time alone would change what is said: silence, the end's last words, the deletion of a finished job."""
    if look.ended is not None:
        return _deletion_time(seen, spec, seen.now if look.ended_at is None else look.ended_at)
    if job_condition(seen.job, "Complete") or job_condition(seen.job, "Failed"):
        return seen.now + LAST_WORDS_SECONDS
    if any(worker.running for worker in seen.workers):
        heard = last_heard(seen)
        return max(seen.now + 1.0, (heard if heard is not None else seen.now) + SILENT_SECONDS + 1.0)
    return seen.now + LOOK_AGAIN_SECONDS if not spec.suspend else None


def _after_the_end(seen: Observed) -> Plan:
    """A finished job keeps what it has said. Only its own deletion may still be due."""
    new = dict(seen.stored) | {"observedGeneration": seen.meta.generation}
    if seen.spec is None:
        return _say(seen, new)
    due = _deletion_time(seen, seen.spec, seconds_of(seen.stored.get("completionTime")))
    if due is None:
        return _say(seen, new)
    if seen.now >= due:
        return Plan(actions=(Delete(seen.key, seen.meta.uid, seen.meta.resource_version),))
    return _say(seen, new, look_again_at=due)


def _deletion_time(seen: Observed, spec: TrainingJobSpec, completed: float | None) -> float | None:
    if spec.ttl_seconds_after_finished is None or completed is None:
        return None
    return completed + spec.ttl_seconds_after_finished


def _with_finalizer(seen: Observed) -> tuple[str, ...]:
    return seen.finalizers if FINALIZER in seen.finalizers else (*seen.finalizers, FINALIZER)


def _say(seen: Observed, new: Object, *, coalesce: bool = False, **rest: Any) -> Plan:
    return Plan(status=new, events=status.events(seen, new), coalesce_status=coalesce, **rest)

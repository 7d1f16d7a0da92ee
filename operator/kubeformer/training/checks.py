"""Checks: whether a TrainingJob may start. Each finds one thing wrong, in words that name the field and the way out.

They run in order, and only before the first start: what already runs is not touched by what is found later.
"""

from collections.abc import Callable

from kubeformer.api.conditions import JobReason
from kubeformer.api.uri import PvcUri, RemoteUri, Uri
from kubeformer.kit.artifacts import published_by
from kubeformer.kit.capacity import capacity_finding
from kubeformer.kit.child import Child
from kubeformer.kit.findings import Finding, name_taken
from kubeformer.kit.view import Key
from kubeformer.training.observe import Observed, data_uris, given_storage, uri_of
from kubeformer.training.resolve import checkpoint_of, worker_resources
from kubeformer.training.secrets import secret_variables

SHARED_MODES = frozenset({"ReadWriteMany", "ReadOnlyMany"})


def spec_can_be_read(seen: Observed) -> Finding | None:
    """The object fits the schema of this operator."""
    return None if seen.spec is not None else Finding(JobReason.SETTINGS_INVALID, seen.refusal)


def name_is_free(seen: Observed) -> Finding | None:
    """No Job of the name belongs to somebody else. One that is being deleted is waited for."""
    return name_taken(seen, "TrainingJob", JobReason.NAME_TAKEN)


def data_is_there(seen: Observed) -> Finding | None:
    """Claims and ConfigMaps that hold rows exist; whether the file is there, the workers will see."""
    assert seen.spec is not None
    for field, uri in data_uris(seen.spec).items():
        if (found := _missing(seen, field, uri)) is not None:
            return found
    return None


def weights_are_there(seen: Observed) -> Finding | None:
    """The claim of `model.uri` exists."""
    assert seen.spec is not None
    uri = uri_of(seen.spec.model.uri) if seen.spec.model is not None else None
    return _missing(seen, "spec.model.uri", uri) if uri is not None else None


def secrets_agree(seen: Observed) -> Finding | None:
    """Credentials become environment variables of the workers, so each variable comes from one Secret."""
    assert seen.spec is not None
    named: dict[str, tuple[str, str]] = {}
    for field, secret, variables in secret_variables(seen.spec):
        for variable in variables:
            before = named.setdefault(variable, (field, secret))
            if before[1] != secret:
                return Finding(
                    JobReason.SETTINGS_INVALID,
                    f"{before[0]} is {before[1]} and {field} is {secret}, and both would give the workers {variable}: "
                    "put the credentials into one Secret and name that in both.",
                )
    return None


def state_is_there(seen: Observed) -> Finding | None:
    """What `checkpoint.resumeFrom` names exists: the claim, or a TrainingJob that has a checkpoint."""
    assert seen.spec is not None
    resume = seen.spec.checkpoint.resume_from
    if resume is None:
        return None
    if resume.training_job_ref is None:
        uri = uri_of(resume.uri)
        return _missing(seen, "spec.checkpoint.resumeFrom.uri", uri) if uri is not None else None
    name = resume.training_job_ref.name
    field = f"spec.checkpoint.resumeFrom.trainingJobRef.name is {name}"
    key = Key("TrainingJob", seen.key.namespace, name)
    if name == seen.name or seen.earlier is None:
        what = "this job itself" if name == seen.name else f"no TrainingJob in the namespace {seen.key.namespace}"
        return Finding(JobReason.CHECKPOINT_NOT_FOUND, f"{field}, which is {what}: name another.", depends_on=(key,))
    if checkpoint_of(seen.earlier) is None:
        return Finding(
            JobReason.CHECKPOINT_NOT_FOUND,
            f"{field}, which has no checkpoint yet; training begins when it has.",
            waits=True,
            depends_on=(key,),
        )
    return None


def storage_is_there(seen: Observed) -> Finding | None:
    """Claims to write to exist, where the spec names them; the installation's own is made."""
    assert seen.spec is not None
    for field, uri in given_storage(seen.spec).items():
        if (found := _missing(seen, field, uri)) is not None:
            return found
    needs_default = len(given_storage(seen.spec)) < 2
    if needs_default and not isinstance(uri_of(seen.settings.storage_uri), PvcUri):
        return Finding(
            JobReason.STORAGE_UNSUITABLE,
            "spec.output.storage and spec.checkpoint.storage are left out, and the installation has no storage.uri: "
            "name a claim, as in storage: {uri: pvc://CLAIM/PATH}, or set the chart's storage.uri.",
        )
    return None


def claims_are_shared(seen: Observed) -> Finding | None:
    """Several workers need claims that several nodes can mount."""
    assert seen.spec is not None
    replicas = seen.spec.workers.replicas
    if replicas == 1:
        return None
    read = {field: uri for field, uri in data_uris(seen.spec).items() if isinstance(uri, PvcUri)}
    weights = uri_of(seen.spec.model.uri) if seen.spec.model is not None else None
    if isinstance(weights, PvcUri):
        read["spec.model.uri"] = weights
    written = dict(given_storage(seen.spec))
    shared = uri_of(seen.settings.storage_uri)
    if len(written) < 2 and isinstance(shared, PvcUri):
        written["the installation's storage.uri"] = shared
    for field, uri in [*written.items(), *read.items()]:
        claim = seen.claims.get(uri.claim)
        modes = _modes(claim)
        enough = modes & (SHARED_MODES if field in read else {"ReadWriteMany"})
        if claim is not None and modes and not enough:
            return Finding(
                JobReason.STORAGE_UNSUITABLE,
                f"{field} is on the claim {uri.claim}, which has {', '.join(sorted(modes))}: {replicas} workers on "
                "several nodes need ReadWriteMany. Use such a claim, or set spec.workers.replicas to 1.",
                depends_on=(_claim_key(seen, uri.claim),),
            )
    return None


def base_is_published(seen: Observed) -> Finding | None:
    """The TrainingJob that `model.trainingJobRef` names has published a model."""
    assert seen.spec is not None
    if seen.spec.model is None or seen.spec.model.training_job_ref is None:
        return None
    name = seen.spec.model.training_job_ref.name
    field = f"spec.model.trainingJobRef.name is {name}"
    key = Key("TrainingJob", seen.key.namespace, name)
    if name == seen.name:
        return Finding(JobReason.MODEL_NOT_FOUND, f"{field}, which is this job itself: name another TrainingJob.")
    if seen.base is None:
        return Finding(
            JobReason.MODEL_NOT_FOUND,
            f"{field}, and there is no such TrainingJob in the namespace {seen.key.namespace}: make it, or name "
            "another.",
            depends_on=(key,),
        )
    published = published_by(seen.base)
    if published.failed:
        return Finding(
            JobReason.MODEL_FAILED,
            f"{field}, which has failed and published nothing: mend that job, or name another.",
            depends_on=(key,),
        )
    if published.uri is None:
        return Finding(
            JobReason.WAITING_FOR_MODEL,
            f"{field}, which has not published its model yet; training begins when it has.",
            waits=True,
            depends_on=(key,),
        )
    return None


def a_node_is_big_enough(seen: Observed) -> Finding | None:
    """Some node could hold a worker, if it were empty: a GPU nobody has is said at once."""
    assert seen.spec is not None
    resources, given = worker_resources(seen.spec, seen.settings), seen.spec.workers.resources.dump()
    found = capacity_finding(resources, given, seen.nodes, "spec.workers.resources")
    if found is None:
        return None
    return Finding(JobReason.INSUFFICIENT_CAPACITY, found.message, waits=True, depends_on=(Key("Node", "", ""),))


CHECKS: tuple[Callable[[Observed], Finding | None], ...] = (
    spec_can_be_read,
    name_is_free,
    data_is_there,
    weights_are_there,
    secrets_agree,
    state_is_there,
    storage_is_there,
    claims_are_shared,
    base_is_published,
    a_node_is_big_enough,
)


def _missing(seen: Observed, field: str, uri: Uri) -> Finding | None:
    if isinstance(uri, RemoteUri):
        return None  # only the workers can look there
    if isinstance(uri, PvcUri):
        claim = seen.claims.get(uri.claim)
        if claim is not None and claim.meta.deletion_timestamp is None:
            return None
        state = "is being deleted" if claim is not None else "does not exist"
        return Finding(
            JobReason.CLAIM_NOT_FOUND,
            f"{field} is {uri}, and the claim {uri.claim} {state} in the namespace {seen.key.namespace}: make it, or "
            "name another.",
            depends_on=(_claim_key(seen, uri.claim),),
        )
    found = seen.user_maps.get(uri.name)
    key = Key("ConfigMap", seen.key.namespace, uri.name)
    if found is None:
        return Finding(
            JobReason.CONFIG_MAP_NOT_FOUND,
            f"{field} is {uri}, and there is no ConfigMap {uri.name} in the namespace {seen.key.namespace}: make it, "
            "or name another.",
            depends_on=(key,),
        )
    if uri.key not in found.data:
        there = ", ".join(sorted(found.data)[:5]) or "none"
        return Finding(
            JobReason.CONFIG_MAP_NOT_FOUND,
            f"{field} is {uri}, and the ConfigMap {uri.name} has no key {uri.key} (it has {there}): add it, or name "
            "another.",
            depends_on=(key,),
        )
    return None


def _claim_key(seen: Observed, name: str) -> Key:
    return Key("PersistentVolumeClaim", seen.key.namespace, name)


def _modes(claim: Child | None) -> frozenset[str]:
    if claim is None:
        return frozenset()
    modes = claim.spec.get("accessModes")
    return frozenset(str(mode) for mode in modes) if isinstance(modes, list | tuple) else frozenset()

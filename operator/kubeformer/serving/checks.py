"""Checks: whether what the spec asks for may be rolled out. What already serves goes on, whatever they find."""

from collections.abc import Callable

from kubeformer.api.conditions import DeploymentReason
from kubeformer.api.engine import engine_of
from kubeformer.kit.artifacts import published_by
from kubeformer.kit.capacity import capacity_finding
from kubeformer.kit.findings import Finding, name_taken
from kubeformer.kit.view import Key
from kubeformer.serving.observe import Observed
from kubeformer.serving.resources import server_resources

SHARED_MODES = frozenset({"ReadWriteMany", "ReadOnlyMany"})


def spec_can_be_read(seen: Observed) -> Finding | None:
    """The object fits the schema of this operator."""
    return None if seen.spec is not None else Finding(DeploymentReason.SETTINGS_INVALID, seen.refusal)


def name_is_free(seen: Observed) -> Finding | None:
    """No Deployment of the name belongs to somebody else. One that is being deleted is waited for."""
    return name_taken(seen, "ModelDeployment", DeploymentReason.NAME_TAKEN)


def model_is_published(seen: Observed) -> Finding | None:
    """The TrainingJob has published its model, now or before."""
    assert seen.spec is not None
    ref = seen.spec.model.training_job_ref
    if ref is None or seen.model is not None:
        return None
    field = f"spec.model.trainingJobRef.name is {ref.name}"
    key = Key("TrainingJob", seen.key.namespace, ref.name)
    if seen.job is None:
        return Finding(
            DeploymentReason.MODEL_NOT_FOUND,
            f"{field}, and there is no such TrainingJob in the namespace {seen.key.namespace}: make it, name another, "
            "or give the model's place as model: {uri: pvc://CLAIM/PATH}.",
            depends_on=(key,),
        )
    published = published_by(seen.job)
    if published.failed:
        return Finding(
            DeploymentReason.MODEL_FAILED,
            f"{field}, which has failed and published nothing ({published.why}): mend that job, or name another.",
            depends_on=(key,),
        )
    return Finding(
        DeploymentReason.WAITING_FOR_MODEL,
        f"{field}, which has not published its model yet; serving begins when it has.",
        waits=True,
        depends_on=(key,),
    )


def model_has_a_place(seen: Observed) -> Finding | None:
    """`model.uri` names a place on a claim."""
    assert seen.spec is not None
    if seen.model is not None:
        return None
    return Finding(
        DeploymentReason.MODEL_NOT_FOUND,
        f"spec.model.uri is {seen.spec.model.uri}, which is no place on a claim: write pvc://CLAIM/PATH.",
    )


def an_image_is_there(seen: Observed) -> Finding | None:
    """vLLM has an image of its own, which an installation may do without."""
    assert seen.spec is not None
    engine, why = engine_of(seen.spec)
    if engine != "VLLM" or seen.spec.pod.image is not None or seen.settings.vllm_image:
        return None
    return Finding(
        DeploymentReason.SETTINGS_INVALID,
        f"{why} This installation has no image of vLLM: set spec.pod.image, have images.vllm set in the chart, or set "
        "spec.engine.type to Builtin.",
    )


def claims_are_there(seen: Observed) -> Finding | None:
    """The claims that model and adapters are on exist; whether the directories are there, the servers will see."""
    for place in seen.places:
        if place.claim is not None and place.claim.meta.deletion_timestamp is None:
            continue
        state = "is being deleted" if place.claim is not None else "does not exist"
        return Finding(
            DeploymentReason.CLAIM_NOT_FOUND,
            f"{place.what} is {place.uri}, and the claim {place.uri.claim} {state} in the namespace "
            f"{seen.key.namespace}: make it, or name another.",
            depends_on=(Key("PersistentVolumeClaim", seen.key.namespace, place.uri.claim),),
        )
    return None


def claims_are_shared(seen: Observed) -> Finding | None:
    """Several servers need claims that several nodes can mount."""
    assert seen.spec is not None
    if seen.spec.replicas <= 1:
        return None
    for place in seen.places:
        modes = place.claim.spec.get("accessModes") if place.claim is not None else None
        given = {str(mode) for mode in modes} if isinstance(modes, list | tuple) else set()
        if not given or given & SHARED_MODES:
            continue
        return Finding(
            DeploymentReason.SETTINGS_INVALID,
            f"spec.replicas is {seen.spec.replicas}, and {place.what} is on the claim {place.uri.claim}, which has "
            f"{', '.join(sorted(given))}: servers on several nodes need ReadWriteMany or ReadOnlyMany. Use such a "
            "claim, or set spec.replicas to 1.",
            depends_on=(Key("PersistentVolumeClaim", seen.key.namespace, place.uri.claim),),
        )
    return None


def a_node_is_big_enough(seen: Observed) -> Finding | None:
    """Some node could hold a server, if it were empty."""
    assert seen.spec is not None
    resources, given = server_resources(seen.spec, seen.settings), seen.spec.resources.dump()
    found = capacity_finding(resources, given, seen.nodes, "spec.resources")
    if found is None:
        return None
    return Finding(DeploymentReason.INSUFFICIENT_CAPACITY, found.message, waits=True, depends_on=(Key("Node", "", ""),))


Check = Callable[[Observed], Finding | None]

ALWAYS: tuple[Check, ...] = (spec_can_be_read, name_is_free, model_is_published, model_has_a_place)
"""Without these there is nothing to render."""

BEFORE_A_ROLLOUT: tuple[Check, ...] = (an_image_is_there, claims_are_there, claims_are_shared, a_node_is_big_enough)
"""These are asked when new servers would be started, and of nothing that runs."""

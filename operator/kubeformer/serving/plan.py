"""Plan: what to do next for one ModelDeployment. From whatever is there it names the next writes, and no more.

    the model is known -> ConfigMap, Service, Deployment, budget -> follow the roll-out -> drop settings nobody reads

A finding keeps a new revision from being rolled out; what serves already serves on. Children go by garbage
collection when the ModelDeployment is deleted, and nothing else is left of it.
"""

from collections.abc import Mapping
from typing import Any

from kubeformer.api.engine import engine_of
from kubeformer.api.model_deployment import ModelDeploymentSpec
from kubeformer.contract import names
from kubeformer.kit.findings import Finding, first_finding
from kubeformer.kit.plan import Apply, Delete, Plan
from kubeformer.kit.settings import OperatorSettings
from kubeformer.kit.view import Key, View
from kubeformer.serving import status
from kubeformer.serving.build import Rendered, render
from kubeformer.serving.checks import ALWAYS, BEFORE_A_ROLLOUT
from kubeformer.serving.observe import Model, Observed, observe
from kubeformer.serving.outlook import counts

LOOK_AGAIN_SECONDS = 60.0  # what waits is woken by news; this is for news that got lost

Object = dict[str, Any]


def reconcile(view: View, key: Key, settings: OperatorSettings, now: float) -> Plan:
    """The next step for the ModelDeployment `key`. Never raises, whatever the view holds."""
    raw = view.primary(key)
    if raw is None:
        return Plan()
    seen = observe(view, key, raw, settings, now)
    if seen.meta.deletion_timestamp is not None:
        return Plan()
    finding = first_finding(ALWAYS, seen)
    if finding is not None or seen.spec is None or seen.model is None:
        return _say(seen, finding, seen.model, None, "")
    image, rendered = _render(seen, seen.spec, seen.model)
    if _starts_servers(seen, rendered):
        finding = first_finding(BEFORE_A_ROLLOUT, seen)
        if finding is not None:
            return _say(seen, finding, seen.model, None, image)
    return _say(seen, None, seen.model, rendered, image, _actions(seen, rendered))


def _render(seen: Observed, spec: ModelDeploymentSpec, model: Model) -> tuple[str, Rendered]:
    """What should be there, and with which image.

    While servers answer, the image stays what it was chosen to be, until something else makes a new revision:
    so a new chart does not restart servers that work, and mends those that do not.
    """
    if spec.pod.image is not None:
        return spec.pod.image, render(seen, spec, model, spec.pod.image)
    resolved = seen.stored.get("resolved")
    kept = resolved.get("image") if isinstance(resolved, Mapping) else None
    if isinstance(kept, str) and kept and seen.deployment is not None and counts(seen.deployment).ready:
        rendered = render(seen, spec, model, kept)
        if seen.deployment.meta.labels.get(names.LABEL_REVISION) == rendered.revision:
            return kept, rendered
    image = seen.settings.vllm_image if engine_of(spec)[0] == "VLLM" else seen.settings.server_image
    return image, render(seen, spec, model, image)


def _starts_servers(seen: Observed, rendered: Rendered) -> bool:
    if seen.deployment is None:
        return True
    now = seen.deployment.spec.get("replicas")
    more = not isinstance(now, int) or rendered.deployment["spec"]["replicas"] > now
    return more or seen.deployment.meta.labels.get(names.LABEL_REVISION) != rendered.revision


def _actions(seen: Observed, rendered: Rendered) -> tuple[Apply | Delete, ...]:
    there = {child.meta.name for child in seen.config_maps}
    actions: list[Apply | Delete] = []
    if rendered.config_map["metadata"]["name"] not in there:
        actions.append(Apply(rendered.config_map))
    actions += [Apply(rendered.service), Apply(rendered.deployment)]
    if rendered.budget is not None:
        actions.append(Apply(rendered.budget))
    elif seen.budget is not None and seen.budget.meta.deletion_timestamp is None:
        key = Key("PodDisruptionBudget", seen.key.namespace, seen.name)
        actions.append(Delete(key, seen.budget.meta.uid, seen.budget.meta.resource_version))
    return (*actions, *_outdated(seen, rendered))


def _outdated(seen: Observed, rendered: Rendered) -> tuple[Delete, ...]:
    """Settings of revisions that have no pods any more."""
    deployment = seen.deployment
    if deployment is None or deployment.meta.labels.get(names.LABEL_REVISION) != rendered.revision:
        return ()
    hashes = {pod.meta.annotations.get(names.ANNOTATION_SETTINGS_HASH, "") for pod in seen.pods}
    there = counts(deployment)
    if not there.current or there.updated != there.total:
        return ()  # a roll-out is under way: a pod that we have not heard of may still want the old ones
    current = rendered.config_map["metadata"]["name"]
    return tuple(
        Delete(Key("ConfigMap", child.meta.namespace, child.meta.name), child.meta.uid, child.meta.resource_version)
        for child in seen.config_maps
        if child.meta.name != current
        and child.meta.name.rpartition("-")[2] not in hashes
        and child.meta.deletion_timestamp is None
    )


def _say(
    seen: Observed,
    finding: Finding | None,
    model: Model | None,
    rendered: Rendered | None,
    image: str,
    actions: tuple[Apply | Delete, ...] = (),
) -> Plan:
    new = status.status(seen, finding, model, rendered, image)
    depends = [*seen.taken.values(), *(finding.depends_on if finding is not None else ())]
    ref = seen.spec.model.training_job_ref if seen.spec is not None else None
    if ref is not None:
        depends.append(Key("TrainingJob", seen.key.namespace, ref.name))
    return Plan(
        actions=actions,
        status=new,
        events=status.events(seen, new),
        look_again_at=seen.now + LOOK_AGAIN_SECONDS if finding is not None and finding.depends_on else None,
        depends_on=tuple(dict.fromkeys(depends)),
    )

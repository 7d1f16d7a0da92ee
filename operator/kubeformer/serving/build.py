"""Build: the children of a ModelDeployment as Kubernetes JSON. Pure; the same deployment renders the same bytes.

A ConfigMap with the settings (immutable, named by its content), a Deployment whose pods carry their revision, a
Service, and, where several replicas share the work, a PodDisruptionBudget. A server is ready when /health says so; on
its way out it stays for a moment, so that nobody is sent to it any more, and then finishes its answers. What differs
between our engine and vLLM is in `process` and `vllm`.
"""

from dataclasses import dataclass
from typing import Any

from kubeformer.api.engine import accelerators, engine_of
from kubeformer.api.model_deployment import ModelDeploymentSpec
from kubeformer.api.uri import PvcUri
from kubeformer.contract import names
from kubeformer.contract import server as contract
from kubeformer.contract.base import Location
from kubeformer.kit import pods
from kubeformer.kit.digests import short_hash
from kubeformer.serving.observe import COMPONENT_SERVER, Model, Observed, claim_uri
from kubeformer.serving.process import HEALTH, Process, Resources, builtin
from kubeformer.serving.resources import server_resources, threads
from kubeformer.serving.vllm import vllm

DRAIN_MARGIN_SECONDS = 15  # over drainSeconds, before the kubelet kills
POD_NAME = {"name": names.ENV_POD_NAME, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
SCRAPED = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(names.PORT_SERVER),
    "prometheus.io/path": "/metrics",
}
"""Annotations by which Prometheus finds the metrics, where it is set up to go by them."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """What should be there, and under which name of revision."""

    revision: str
    config_map: Object
    deployment: Object
    service: Object
    budget: Object | None


def labels(name: str) -> dict[str, str]:
    """What every child carries."""
    return {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_COMPONENT: COMPONENT_SERVER,
        names.LABEL_MODEL_DEPLOYMENT: name,
    }


def render(seen: Observed, spec: ModelDeploymentSpec, model: Model, image: str) -> Rendered:
    """All children for this spec, model and image."""
    settings = _settings(seen, spec, model)
    config_map = _settings_map(settings, seen)
    template = _template(seen, spec, settings, image, config_map["metadata"]["name"])
    revision = short_hash(template)
    template["metadata"]["labels"][names.LABEL_REVISION] = revision
    return Rendered(
        revision=revision,
        config_map=config_map,
        deployment=_deployment(seen, spec, template, revision),
        service=_service(seen),
        budget=_budget(seen) if spec.replicas > 1 else None,
    )


def _location(uri: PvcUri, digest: str | None = None) -> Location:
    path = f"{names.CLAIMS_DIRECTORY}/{uri.claim}" + (f"/{uri.path}" if uri.path else "")
    return Location(uri=str(uri), path=path, digest=digest)


def _settings(seen: Observed, spec: ModelDeploymentSpec, model: Model) -> contract.ServerSettings:
    sampling, speculative = spec.sampling, spec.engine.speculative
    adapters = ((adapter.name, claim_uri(adapter.uri)) for adapter in spec.model.adapters)
    return contract.ServerSettings(
        name=seen.name,
        namespace=seen.key.namespace,
        model=_location(model.uri, model.digest),
        served_names=list(seen.served_names),
        dtype=spec.engine.dtype,
        quantization=spec.engine.quantization,
        numerics=spec.engine.numerics,
        speculative_tokens=speculative.n_gram.tokens if speculative is not None else 0,
        adapters=[contract.Adapter(name=name, location=_location(uri)) for name, uri in adapters if uri is not None],
        max_model_length=spec.engine.max_model_length,
        max_num_seqs=spec.engine.max_sequences,
        sampling=contract.SamplingDefaults(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
        ),
        drain_seconds=spec.drain_seconds,
    )


def _settings_map(settings: contract.ServerSettings, seen: Observed) -> Object:
    text = settings.model_dump_json(indent=2)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(f"{seen.name}-server-settings-{short_hash(text)}", seen),
        "immutable": True,
        "data": {names.SETTINGS_KEY: text},
    }


def _process(spec: ModelDeploymentSpec, settings: contract.ServerSettings, resources: Resources) -> Process:
    count = threads(resources)
    if engine_of(spec)[0] == "Builtin":
        return builtin(count)
    found = accelerators(spec.resources.limits, spec.resources.requests)
    return vllm(settings, spec.engine.extra_args, found, resources, count)


def _template(
    seen: Observed, spec: ModelDeploymentSpec, settings: contract.ServerSettings, image: str, settings_name: str
) -> Object:
    mounts = pods.Mounts.of([("pvc", place.uri.claim) for place in seen.places])
    resources = server_resources(spec, seen.settings)
    process = _process(spec, settings, resources)
    shared_memory = process.shared_memory if spec.pod.shared_memory is None else str(spec.pod.shared_memory)
    environment = {**process.environment, **{variable.name: variable.value for variable in spec.pod.env}}
    container = pods.container(
        name=COMPONENT_SERVER,
        image=image,
        command=process.command,
        env=[POD_NAME, *pods.environment(environment | {names.ENV_SETTINGS: names.SETTINGS_PATH})],
        ports={"http": names.PORT_SERVER},
        resources=resources,
        mounts=mounts,
        shared_memory=shared_memory is not None,
        settings=seen.settings,
    )
    health = {"httpGet": {"path": HEALTH, "port": "http"}}
    container |= {
        # Loading takes as long as it takes; half an hour is for the largest models on the slowest storage.
        "startupProbe": health | {"periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 1800},
        "readinessProbe": health | {"periodSeconds": 3, "timeoutSeconds": 5, "failureThreshold": 3},
        # Slow to kill, because a busy server is no dead one.
        "livenessProbe": health | {"periodSeconds": 15, "timeoutSeconds": 15, "failureThreshold": 8},
        "lifecycle": {"preStop": dict(process.before_stop)},
        "terminationMessagePolicy": process.last_words,
    }
    grace = spec.drain_seconds + process.extra_seconds + DRAIN_MARGIN_SECONDS
    pod = pods.pod_spec(
        containers=[container],
        volumes=pods.volumes(mounts, settings_name, shared_memory),
        settings=seen.settings,
        options=spec.pod.dump(),
        grace_seconds=max(spec.pod.termination_grace_period_seconds or 0, grace),
    )
    if settings.model.digest is not None and not process.checks_digest:
        pod["initContainers"] = [_digest_check(seen, mounts, resources)]
    pod["topologySpreadConstraints"] = pods.spread(labels(seen.name))
    return {
        "metadata": {
            "labels": dict(spec.pod.labels) | labels(seen.name),
            "annotations": SCRAPED
            | dict(spec.pod.annotations)
            | {names.ANNOTATION_SETTINGS_HASH: settings_name.rpartition("-")[2]},
        },
        "spec": pod,
    }


def _digest_check(seen: Observed, mounts: pods.Mounts, resources: Resources) -> Object:
    """Runs before an engine that takes whatever it finds. Our image has the code; vLLM's shares its layers."""
    return pods.container(
        name="digest",
        image=seen.settings.server_image,
        command=["python", "-m", "kubeformer_runtime.model.check"],
        env=pods.environment({names.ENV_SETTINGS: names.SETTINGS_PATH}),
        ports={},
        resources={
            part: {name: quantity for name, quantity in resources[part].items() if "/" not in name}
            for part in resources
        },
        mounts=mounts,
        shared_memory=False,
        settings=seen.settings,
    )


def _deployment(seen: Observed, spec: ModelDeploymentSpec, template: Object, revision: str) -> Object:
    metadata = _metadata(seen.name, seen)
    metadata["labels"] = labels(seen.name) | {names.LABEL_REVISION: revision}
    metadata["annotations"] = {names.ANNOTATION_SERVED_NAMES: ",".join(seen.claimed_names)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": spec.replicas,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": labels(seen.name)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxSurge": spec.rollout.max_surge,
                    "maxUnavailable": spec.rollout.max_unavailable,
                },
            },
            "template": template,
        },
    }


def _service(seen: Observed) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(seen.name, seen),
        "spec": {
            "selector": labels(seen.name),
            "ports": [{"name": "http", "port": names.PORT_SERVER, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _budget(seen: Observed) -> Object:
    """One at a time may be evicted. With a single replica there is none: it would keep nodes from being drained."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(seen.name, seen),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels(seen.name)}},
    }


def _metadata(name: str, seen: Observed) -> Object:
    return {
        "name": name,
        "namespace": seen.key.namespace,
        "labels": labels(seen.name),
        "ownerReferences": [pods.owner_reference("ModelDeployment", seen.name, seen.meta.uid)],
    }

"""Build: the children of a ModelDeployment as Kubernetes JSON. Pure; the same deployment renders the same bytes.

A ConfigMap with the settings (immutable, named by its content), a Deployment whose pods carry their revision, a
Service, and, where several replicas share the work, a PodDisruptionBudget. A server is ready when /health says so; on
its way out it stays for a moment, so that nobody is sent to it any more, and then finishes its answers.
"""

from dataclasses import dataclass
from typing import Any

from kubeformer.api.model_deployment import ModelDeploymentSpec
from kubeformer.contract import names
from kubeformer.contract import server as contract
from kubeformer.contract.base import Location
from kubeformer.kit import pods
from kubeformer.kit.digests import short_hash
from kubeformer.serving.observe import COMPONENT_SERVER, Model, Observed
from kubeformer.serving.resources import server_resources, threads

FAREWELL_SECONDS = 2  # between "no new requests" in EndpointSlices and SIGTERM
DRAIN_MARGIN_SECONDS = 15  # over drainSeconds, before the kubelet kills

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
    config_map = _settings_map(_settings(seen, spec, model), seen)
    template = _template(seen, spec, model, image, config_map["metadata"]["name"])
    revision = short_hash(template)
    template["metadata"]["labels"][names.LABEL_REVISION] = revision
    return Rendered(
        revision=revision,
        config_map=config_map,
        deployment=_deployment(seen, spec, template, revision),
        service=_service(seen),
        budget=_budget(seen) if spec.replicas > 1 else None,
    )


def _settings(seen: Observed, spec: ModelDeploymentSpec, model: Model) -> contract.ServerSettings:
    path = f"{names.CLAIMS_DIRECTORY}/{model.uri.claim}" + (f"/{model.uri.path}" if model.uri.path else "")
    sampling = spec.sampling
    return contract.ServerSettings(
        name=seen.name,
        namespace=seen.key.namespace,
        model=Location(uri=str(model.uri), path=path, digest=model.digest),
        served_names=list(seen.served_names),
        dtype=spec.engine.dtype,
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


def _template(seen: Observed, spec: ModelDeploymentSpec, model: Model, image: str, settings_name: str) -> Object:
    mounts = pods.Mounts.of([("pvc", model.uri.claim)])
    resources = server_resources(spec, seen.settings)
    shared_memory = None if spec.pod.shared_memory is None else str(spec.pod.shared_memory)
    environment = {"HOME": names.SCRATCH_DIRECTORY}
    if (count := threads(resources)) is not None:
        environment["OMP_NUM_THREADS"] = str(count)
    environment |= {variable.name: variable.value for variable in spec.pod.env}
    environment[names.ENV_SETTINGS] = names.SETTINGS_PATH
    name = {"name": names.ENV_POD_NAME, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    container = pods.container(
        name=COMPONENT_SERVER,
        image=image,
        command=["python", "-m", "kubeformer_runtime.server"],
        env=[name, *pods.environment(environment)],
        ports={"http": names.PORT_SERVER},
        resources=resources,
        mounts=mounts,
        shared_memory=shared_memory is not None,
        settings=seen.settings,
    )
    health = {"httpGet": {"path": "/health", "port": "http"}}
    container |= {
        # Loading takes as long as it takes; half an hour is for the largest models on the slowest storage.
        "startupProbe": health | {"periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 1800},
        "readinessProbe": health | {"periodSeconds": 3, "timeoutSeconds": 5, "failureThreshold": 3},
        # Slow to kill, because a busy server is no dead one.
        "livenessProbe": health | {"periodSeconds": 15, "timeoutSeconds": 15, "failureThreshold": 8},
        "lifecycle": {"preStop": {"sleep": {"seconds": FAREWELL_SECONDS}}},
    }
    pod = pods.pod_spec(
        containers=[container],
        volumes=pods.volumes(mounts, settings_name, shared_memory),
        settings=seen.settings,
        options=spec.pod.dump(),
        grace_seconds=max(
            spec.pod.termination_grace_period_seconds or 0, spec.drain_seconds + FAREWELL_SECONDS + DRAIN_MARGIN_SECONDS
        ),
    )
    pod["topologySpreadConstraints"] = pods.spread(labels(seen.name))
    return {
        "metadata": {
            "labels": dict(spec.pod.labels) | labels(seen.name),
            "annotations": dict(spec.pod.annotations)
            | {names.ANNOTATION_SETTINGS_HASH: settings_name.rpartition("-")[2]},
        },
        "spec": pod,
    }


def _deployment(seen: Observed, spec: ModelDeploymentSpec, template: Object, revision: str) -> Object:
    metadata = _metadata(seen.name, seen)
    metadata["labels"] = labels(seen.name) | {names.LABEL_REVISION: revision}
    metadata["annotations"] = {names.ANNOTATION_SERVED_NAMES: ",".join(seen.served_names)}
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

"""Build: the children of a TrainingJob as Kubernetes JSON. Pure; the same job renders the same bytes.

A ConfigMap with the settings (immutable, named by its content), a headless Service that gives workers stable
names, and an Indexed Job. Why the Job is as it is:

- `backoffLimit`, not `backoffLimitPerIndex`: recovery.maxRestarts is a budget of the whole job. Ranks train
  together, so a job in which one index has given up while the others go on would be no use to anybody.
- `podReplacementPolicy: Failed`: a worker is replaced when the old one has ended, so that no two write one checkpoint.
- The pod failure policy ends the job at once where starting again cannot help (exit code 78), and counts neither
  evictions nor voluntary stops (143).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kubeformer.api.training_job import TrainingJobSpec
from kubeformer.api.uri import ConfigMapUri, PvcUri, Uri
from kubeformer.contract import job as contract
from kubeformer.contract import names
from kubeformer.kit import pods
from kubeformer.kit.digests import short_hash
from kubeformer.kit.quantities import amount
from kubeformer.kit.settings import OperatorSettings
from kubeformer.training.document import path_of
from kubeformer.training.observe import COMPONENT_CLEANUP, COMPONENT_WORKER, Observed, cleanup_name, data_uris, uri_of
from kubeformer.training.resolve import architecture, worker_resources
from kubeformer.training.secrets import credentials

ANNOTATION_TEMPLATE_HASH = f"{names.GROUP}/template-hash"
GRACE_SECONDS = 120
COPY_DIRECTORY = f"{names.SCRATCH_DIRECTORY}/kubeformer"
SOCKET_PATH = f"{names.SCRATCH_DIRECTORY}/launcher.sock"

Object = dict[str, Any]


def service_name(name: str) -> str:
    """The headless Service. A ModelDeployment of the same name has its own, under the name itself."""
    return f"{name}-workers"


def labels(name: str, component: str = COMPONENT_WORKER) -> dict[str, str]:
    """What every child carries."""
    return {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_COMPONENT: component,
        names.LABEL_TRAINING_JOB: name,
    }


def settings_map(document: contract.JobSettings, seen: Observed) -> Object:
    """The ConfigMap. It never changes; other settings get another one."""
    text = document.model_dump_json(indent=2)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(f"{seen.name}-settings-{short_hash(text)}", seen),
        "immutable": True,
        "data": {names.SETTINGS_KEY: text},
    }


def service(seen: Observed) -> Object:
    """The headless Service. Names resolve before the workers are ready, because they meet to become so."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(service_name(seen.name), seen),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": labels(seen.name),
            "ports": [{"name": "progress", "port": names.PORT_PROGRESS, "protocol": "TCP"}],
        },
    }


def pod_group(spec: TrainingJobSpec, seen: Observed) -> Object:
    """All workers or none, where the API server can hold them together."""
    return {
        "apiVersion": "scheduling.k8s.io/v1beta1",
        "kind": "PodGroup",
        "metadata": _metadata(seen.name, seen),
        "spec": {"schedulingPolicy": {"gang": {"minCount": spec.workers.replicas}}},
    }


def storage_claim(name: str, seen: Observed) -> Object:
    """The shared claim of a namespace. It belongs to nobody, because published models outlive their jobs."""
    settings = seen.settings
    spec: Object = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": settings.storage_size}},
    }
    if settings.storage_class_name:
        spec["storageClassName"] = settings.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": seen.key.namespace,
            "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY},
        },
        "spec": spec,
    }


def job(
    spec: TrainingJobSpec,
    resolved: Mapping[str, Any],
    config_map: Object,
    seen: Observed,
    *,
    suspend: bool,
    backoff_limit: int,
    deadline: int | None,
) -> Object:
    """The Indexed Job. `deadline` is what is left of activeDeadlineSeconds."""
    template = _template(spec, resolved, config_map["metadata"]["name"], seen)
    metadata = _metadata(seen.name, seen)
    metadata["annotations"] = {
        ANNOTATION_TEMPLATE_HASH: template_hash(template, spec),
        names.ANNOTATION_SETTINGS_HASH: config_map["metadata"]["name"].rpartition("-")[2],
    }
    built: Object = {
        "completionMode": "Indexed",
        "completions": spec.workers.replicas,
        "parallelism": spec.workers.replicas,
        "backoffLimit": backoff_limit,
        "suspend": suspend,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": COMPONENT_WORKER,
                        "operator": "In",
                        "values": [int(names.ExitCode.INVALID)],
                    },
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "Ignore",
                    "onExitCodes": {
                        "containerName": COMPONENT_WORKER,
                        "operator": "In",
                        "values": [int(names.ExitCode.STOPPED)],
                    },
                },
            ]
        },
        "template": template,
    }
    if deadline is not None:
        built["activeDeadlineSeconds"] = deadline
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": built}


def template_hash(template: Object, spec: TrainingJobSpec) -> str:
    """What a Job cannot change once it exists: its template and its size."""
    return short_hash([template, spec.workers.replicas])


def _template(spec: TrainingJobSpec, resolved: Mapping[str, Any], settings_name: str, seen: Observed) -> Object:
    read: list[Uri | None] = [*data_uris(spec).values(), uri_of(resolved.get("resumeUri"))]
    if architecture(spec) is None:
        read.append(uri_of(resolved.get("baseUri")))
    written = [uri_of(resolved.get("checkpointUri")), uri_of(resolved.get("outputUri"))]
    mounts = pods.Mounts.of(_volumes(read), _volumes(written))
    resources = worker_resources(spec, seen.settings)
    copied = spec.task.custom is not None and spec.pod.image is not None
    shared_memory = None if spec.pod.shared_memory is None else str(spec.pod.shared_memory)
    container = pods.container(
        name=COMPONENT_WORKER,
        image=str(resolved.get("image") or spec.pod.image or seen.settings.worker_image),
        command=["python3" if copied else "python", "-m", "kubeformer_runtime.launcher"],
        env=_environment(spec, resources, seen, copied),
        ports={"progress": names.PORT_PROGRESS},
        resources=resources,
        mounts=mounts,
        shared_memory=shared_memory is not None,
        settings=seen.settings,
    )
    options = spec.pod.dump()
    pod = pods.pod_spec(
        containers=[container],
        volumes=pods.volumes(mounts, settings_name, shared_memory),
        settings=seen.settings,
        options=options,
        grace_seconds=spec.pod.termination_grace_period_seconds or GRACE_SECONDS,
        restart_policy="Never",
    )
    if copied:
        pod["initContainers"] = [_launcher_copy(seen.settings)]
    pod["subdomain"] = service_name(seen.name)
    if spec.workers.replicas > 1:
        pod["topologySpreadConstraints"] = pods.spread(labels(seen.name))
    if seen.settings.gangs:
        pod["schedulingGroup"] = {"podGroupName": seen.name}
    annotations = dict(spec.pod.annotations) | {names.ANNOTATION_SETTINGS_HASH: settings_name.rpartition("-")[2]}
    return {
        "metadata": {"labels": dict(spec.pod.labels) | labels(seen.name), "annotations": annotations},
        "spec": pod,
    }


def _volumes(uris: Sequence[Uri | None]) -> list[tuple[str, str]]:
    """What has to be mounted for these: claims and ConfigMaps; what lies outside of the cluster is downloaded."""
    claims = [("pvc", uri.claim) for uri in uris if isinstance(uri, PvcUri)]
    return claims + [("configmap", uri.name) for uri in uris if isinstance(uri, ConfigMapUri)]


def _launcher_copy(settings: OperatorSettings) -> Object:
    """The init container that puts the launcher, which needs no more than Python, beside a custom image's own files."""
    built = pods.container(
        name="launcher",
        image=settings.worker_image,
        command=["python", "-m", "kubeformer_runtime.launcher.copy", COPY_DIRECTORY],
        env=[],
        ports={},
        resources={"requests": {"cpu": "50m", "memory": "64Mi"}},
        mounts=pods.Mounts.of([]),
        shared_memory=False,
        settings=settings,
    )
    built["volumeMounts"] = [mount for mount in built["volumeMounts"] if mount["name"] != "settings"]
    return built


def _environment(
    spec: TrainingJobSpec, resources: Mapping[str, Mapping[str, str]], seen: Observed, copied: bool
) -> list[Object]:
    """Defaults that the user may change, credentials, the user's variables, and what the contract and torchrun need.

    Threads follow the cpu limit: more of them than the container may use only wait for each other.
    """
    processes = spec.workers.processes_per_worker
    defaults = {"HOME": names.SCRATCH_DIRECTORY}
    cores = amount(resources.get("limits", {}).get("cpu", ""))
    if cores is not None:
        defaults["OMP_NUM_THREADS"] = str(max(1, int(cores) // processes))
    theirs = {variable.name: variable.value for variable in spec.pod.env}
    reserved = {
        names.ENV_SETTINGS: names.SETTINGS_PATH,
        names.ENV_SOCKET: SOCKET_PATH,
        "PET_NNODES": str(spec.workers.replicas),
        "PET_NPROC_PER_NODE": str(processes),
        "PET_MASTER_ADDR": f"{seen.name}-0.{service_name(seen.name)}",
        "PET_MASTER_PORT": str(names.PORT_RENDEZVOUS),
        "PET_RDZV_ID": seen.meta.uid,
    }
    name = {"name": names.ENV_POD_NAME, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    if copied:
        reserved["PYTHONPATH"] = ":".join(filter(None, (COPY_DIRECTORY, theirs.get("PYTHONPATH"))))
    return [name, *pods.environment(defaults | theirs | reserved), *credentials(spec, taken=frozenset(theirs))]


def _metadata(name: str, seen: Observed) -> Object:
    return {
        "name": name,
        "namespace": seen.key.namespace,
        "labels": labels(seen.name),
        "ownerReferences": [pods.owner_reference("TrainingJob", seen.name, seen.meta.uid)],
    }


def cleanup_job(checkpoints: PvcUri, model: PvcUri | None, options: Mapping[str, Any], seen: Observed) -> Object:
    """The Job that removes the checkpoints of a deleted TrainingJob, and what an interrupted publication left.

    It has no owner, because its owner is going; whoever lets the TrainingJob go deletes it, and it would go by itself.
    Its image is the installation's own, so that a job whose image could not be pulled is not held by it.
    """
    written = [("pvc", checkpoints.claim)]
    arguments = [names.CLAIMS_DIRECTORY, path_of(checkpoints)]
    if model is not None:
        written.append(("pvc", model.claim))
        arguments += ["--unfinished", path_of(model)]
    mounts = pods.Mounts.of([], written)
    settings = seen.settings
    container = pods.container(
        name=COMPONENT_CLEANUP,
        image=settings.worker_image,
        command=["python", "-m", "kubeformer_runtime.launcher.cleanup", *arguments],
        env=[],
        ports={},
        resources={"requests": {"cpu": "50m", "memory": "64Mi"}},
        mounts=mounts,
        shared_memory=False,
        settings=settings,
    )
    container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] != "settings"]
    spec = pods.pod_spec(
        containers=[container],
        volumes=[v for v in pods.volumes(mounts, "") if v["name"] != "settings"],
        settings=settings,
        options=options,
        grace_seconds=5,
        restart_policy="Never",
    )
    ours = labels(seen.name, COMPONENT_CLEANUP)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": cleanup_name(seen.name), "namespace": seen.key.namespace, "labels": ours},
        "spec": {
            "backoffLimit": settings.cleanup_tries - 1,
            "activeDeadlineSeconds": settings.cleanup_seconds,
            "ttlSecondsAfterFinished": settings.cleanup_seconds,
            "template": {"metadata": {"labels": ours}, "spec": spec},
        },
    }

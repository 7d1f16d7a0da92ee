"""Build: the children of a TrainingJob as Kubernetes JSON. Pure; the same job renders the same bytes.

A ConfigMap with the settings (immutable, named by its content), a headless Service that gives workers stable
names, and an Indexed Job. Why the Job is as it is:

- `backoffLimit`, not `backoffLimitPerIndex`: recovery.maxRestarts is a budget of the whole job. Ranks train
  together, so a job in which one index has given up while the others go on would be no use to anybody.
- `podReplacementPolicy: Failed`: a worker is replaced when the old one has ended, so that no two write one checkpoint.
- The pod failure policy ends the job at once where starting again cannot help (exit code 78), and counts neither
  evictions nor voluntary stops (143).
"""

from collections.abc import Mapping
from typing import Any

from kubeformer.api.training_job import Architecture, TrainingJobSpec
from kubeformer.api.uri import ConfigMapUri, PvcUri, Uri
from kubeformer.contract import job as contract
from kubeformer.contract import names
from kubeformer.contract.base import Location
from kubeformer.kit import pods
from kubeformer.kit.digests import short_hash
from kubeformer.kit.quantities import amount
from kubeformer.training.observe import COMPONENT_CLEANUP, COMPONENT_WORKER, Observed, cleanup_name, data_uris, uri_of
from kubeformer.training.resolve import architecture, learning_rate, objective, worker_resources

ANNOTATION_TEMPLATE_HASH = f"{names.GROUP}/template-hash"
GRACE_SECONDS = 120
SOCKET_PATH = f"{names.SCRATCH_DIRECTORY}/launcher.sock"

Object = dict[str, Any]


def path_of(uri: Uri) -> str:
    """Where a pod finds what a URI names."""
    if isinstance(uri, ConfigMapUri):
        return f"{names.CONFIG_MAPS_DIRECTORY}/{uri.name}/{uri.key}"
    return f"{names.CLAIMS_DIRECTORY}/{uri.claim}" + (f"/{uri.path}" if uri.path else "")


def _location(text: object, digest: object = None) -> Location:
    uri = uri_of(text)
    path = path_of(uri) if uri is not None else ""
    return Location(uri=str(text), path=path, digest=str(digest) if digest else None)


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


def settings_document(spec: TrainingJobSpec, resolved: Mapping[str, Any], seen: Observed) -> contract.JobSettings:
    """What the workers are told, from the spec and from what was resolved."""
    metric, direction = objective(spec)
    given_rate = spec.training.learning_rate
    rate = float(resolved.get("learningRate") or learning_rate(spec)) if given_rate is None else given_rate
    training = spec.training
    stopping = training.evaluation.early_stopping
    steps = training.steps
    return contract.JobSettings(
        name=seen.name,
        namespace=seen.key.namespace,
        uid=seen.meta.uid,
        task=_task(spec),
        model=_model(spec, resolved),
        data=_data(spec),
        training=contract.Training(
            epochs=None if steps is not None else training.epochs or resolved.get("epochs") or 3,
            steps=steps,
            batch_size=training.batch_size,
            learning_rate=rate,
            optimizer=training.optimizer.type,
            weight_decay=training.optimizer.weight_decay,
            max_gradient_norm=training.optimizer.max_gradient_norm,
            schedule=training.schedule.type,
            warmup_percent=training.schedule.warmup_percent,
            objective_metric=metric,
            objective_direction="Maximize" if direction == "Maximize" else "Minimize",
            evaluate_every_epochs=training.evaluation.every_epochs or 1,
            evaluate_every_steps=training.evaluation.every_steps,
            early_stopping=None
            if stopping is None
            else contract.EarlyStopping(patience=stopping.patience, min_delta=stopping.min_delta),
            precision=training.precision,
            seed=training.seed,
        ),
        workers=contract.Workers(
            replicas=spec.workers.replicas, processes_per_worker=spec.workers.processes_per_worker
        ),
        checkpoint=contract.Checkpoint(
            directory=_location(resolved.get("checkpointUri")).path,
            interval_seconds=spec.checkpoint.interval_seconds,
            keep=spec.checkpoint.keep,
        ),
        recovery=contract.Recovery(
            max_restarts=spec.recovery.max_restarts, hang_timeout_seconds=spec.recovery.hang_timeout_seconds
        ),
        output=contract.Output(location=_location(resolved.get("outputUri")), publish=spec.output.publish),
    )


def _task(spec: TrainingJobSpec) -> contract.Task:
    if spec.task.text_classification is not None:
        classification = spec.task.text_classification
        return contract.TextClassification(
            text_field=classification.text_field,
            label_field=classification.label_field,
            max_length=classification.max_length,
        )
    language = spec.task.language_model
    assert language is not None, "the schema wants exactly one task"
    return contract.LanguageModel(text_field=language.text_field, sequence_length=language.sequence_length)


def _model(spec: TrainingJobSpec, resolved: Mapping[str, Any]) -> contract.Model:
    scratch: Architecture | None = architecture(spec)
    if scratch is None:
        return contract.Model(base=_location(resolved.get("baseUri"), resolved.get("baseDigest")))
    return contract.Model(
        architecture=contract.Architecture(
            layers=scratch.layers,
            width=scratch.width,
            heads=scratch.heads,
            key_value_heads=scratch.key_value_heads,
            mlp_width=scratch.mlp_width,
            activation=scratch.activation,
            dropout=scratch.dropout,
        )
    )


def _data(spec: TrainingJobSpec) -> contract.Data:
    prepare, dedupe = spec.data.prepare, spec.data.prepare.deduplicate
    method = dedupe.method or ("Near" if dedupe.similarity_percent is not None else "Exact")
    validation, test, tokenizer = spec.data.validation, spec.data.test, spec.data.tokenizer
    return contract.Data(
        source=_location(spec.data.uri),
        prepare=contract.Prepare(
            normalize=prepare.normalize,
            deduplicate=method,
            similarity_percent=dedupe.similarity_percent or 80,
            min_characters=prepare.min_characters,
            max_bad_rows_percent=prepare.max_bad_rows_percent,
        ),
        validation=None if validation.uri is None else _location(validation.uri),
        validation_percent=validation.percent or 10,
        test=None if test is None else _location(test.uri),
        vocabulary_size=8192 if tokenizer is None else tokenizer.train.vocabulary_size,
    )


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
    read: list[Uri | None] = [*data_uris(spec).values()]
    if architecture(spec) is None:
        read.append(uri_of(resolved.get("baseUri")))
    written = [uri_of(resolved.get("checkpointUri")), uri_of(resolved.get("outputUri"))]
    mounts = pods.Mounts.of([_volume(uri) for uri in read if uri], [_volume(uri) for uri in written if uri])
    resources = worker_resources(spec, seen.settings)
    shared_memory = None if spec.pod.shared_memory is None else str(spec.pod.shared_memory)
    container = pods.container(
        name=COMPONENT_WORKER,
        image=str(resolved.get("image") or spec.pod.image or seen.settings.worker_image),
        command=["python", "-m", "kubeformer_runtime.launcher"],
        env=_environment(spec, resources, seen),
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


def _volume(uri: Uri) -> tuple[str, str]:
    return ("pvc", uri.claim) if isinstance(uri, PvcUri) else ("configmap", uri.name)


def _environment(spec: TrainingJobSpec, resources: Mapping[str, Mapping[str, str]], seen: Observed) -> list[Object]:
    """Defaults that the user may change, the user's variables, and what the contract and torchrun need.

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
    return [name, *pods.environment(defaults | theirs | reserved)]


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

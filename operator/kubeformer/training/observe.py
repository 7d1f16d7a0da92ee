"""Observe: everything that a plan for one TrainingJob is made from, gathered from the View into one frozen value.

Nothing is decided here. What the store holds may be incomplete, old or odd (a report of another version, a
status that somebody wrote by hand): all of it is read with care, because planning never raises.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from kubeformer.api.rules import sentences
from kubeformer.api.training_job import TrainingJob, TrainingJobSpec
from kubeformer.api.training_status import TrainingJobStatus
from kubeformer.api.uri import ConfigMapUri, PvcUri, Uri, UriError, parse
from kubeformer.contract import names
from kubeformer.contract.progress import Progress
from kubeformer.kit.child import Child, Json, Meta, meta
from kubeformer.kit.instants import seconds_of
from kubeformer.kit.readable import readable
from kubeformer.kit.settings import OperatorSettings
from kubeformer.kit.troubles import container_statuses, state_of
from kubeformer.kit.view import Key, View

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
COMPONENT_WORKER = "worker"
COMPONENT_CLEANUP = "cleanup"


@dataclass(frozen=True, slots=True)
class Worker:
    """One pod of the Job, alive or ended, with the last it said."""

    pod: Child
    index: int | None
    progress: Progress | None  # from its termination message, else from the poller
    heard: float | None  # when it said so
    exit_code: int | None  # of the ended container
    message: str  # its termination message as it stands

    @property
    def phase(self) -> str:
        """The pod's phase."""
        return str(self.pod.status.get("phase") or "Pending")

    @property
    def alive(self) -> bool:
        """Whether it may still do something."""
        return self.phase in ("Pending", "Running", "Unknown")

    @property
    def running(self) -> bool:
        """Whether its container runs and nobody has asked it to stop."""
        return self.phase == "Running" and self.pod.meta.deletion_timestamp is None


@dataclass(frozen=True, slots=True)
class Observed:
    """See the module's docstring."""

    key: Key
    meta: Meta
    finalizers: tuple[str, ...]
    spec: TrainingJobSpec | None  # None: it cannot be read, and `refusal` says why
    refusal: str
    stored: Json  # the status as it is, as far as it fits the schema
    job: Child | None  # our Job
    stranger: Child | None  # a Job of the same name that is not ours
    workers: tuple[Worker, ...]  # pods of our Job, by name
    lingering: tuple[Child, ...]  # living pods of this name, of whatever Job
    config_maps: tuple[Child, ...]  # ours
    cleanup: Child | None
    claims: Mapping[str, Child | None]  # those the spec and the installation name
    user_maps: Mapping[str, Child | None]  # ConfigMaps the spec names
    base: Json | None  # the TrainingJob whose model this one goes on from
    earlier: Json | None  # the TrainingJob whose training state this one goes on from
    nodes: tuple[Child, ...]
    settings: OperatorSettings
    now: float

    @property
    def name(self) -> str:
        """The TrainingJob's name, and its Job's."""
        return self.meta.name

    @property
    def conditions(self) -> Sequence[Json]:
        """The stored conditions."""
        found: Sequence[Json] = self.stored.get("conditions") or ()
        return found

    def stored_condition(self, kind: str) -> Json:
        """One of the stored conditions; empty where there is none."""
        return next((c for c in self.conditions if c.get("type") == kind), {})

    @property
    def started(self) -> bool:
        """Whether the job was let in: from then on its spec is fixed, and so is what was resolved."""
        return isinstance(self.stored.get("startTime"), str) or self.job is not None


def observe(view: View, key: Key, raw: Json, settings: OperatorSettings, now: float) -> Observed:
    """Gather what there is for `key`, whose object is `raw`."""
    own = meta(raw)
    spec, refusal = read_spec(raw)
    found = view.child(Key("Job", key.namespace, key.name))
    job = found if found is not None and found.meta.owner_uid == own.uid else None
    pods = view.labelled("Pod", key.namespace, names.LABEL_TRAINING_JOB, key.name)
    claims, user_maps = _referenced(spec, settings)
    base_name = spec.model.training_job_ref.name if spec and spec.model and spec.model.training_job_ref else None
    earlier = resume_name(spec)
    cleanup = view.child(Key("Job", key.namespace, cleanup_name(key.name)))
    return Observed(
        key=key,
        meta=own,
        finalizers=tuple(raw["metadata"].get("finalizers") or ()),
        spec=spec,
        refusal=refusal,
        stored=readable(TrainingJobStatus, raw.get("status")),
        job=job,
        stranger=found if job is None else None,
        workers=tuple(_worker(view, pod) for pod in pods if job is not None and pod.meta.owner_uid == job.meta.uid),
        lingering=tuple(p for p in pods if _is_worker(p) and p.status.get("phase") not in ("Succeeded", "Failed")),
        config_maps=tuple(view.children("ConfigMap", key.namespace, own.uid)),
        cleanup=cleanup,
        claims={name: view.child(Key("PersistentVolumeClaim", key.namespace, name)) for name in claims},
        user_maps={name: view.child(Key("ConfigMap", key.namespace, name)) for name in user_maps},
        base=view.primary(Key("TrainingJob", key.namespace, base_name)) if base_name else None,
        earlier=view.primary(Key("TrainingJob", key.namespace, earlier)) if earlier else None,
        nodes=tuple(view.every("Node")),
        settings=settings,
        now=now,
    )


def cleanup_name(name: str) -> str:
    """The Job that removes the checkpoints of a deleted TrainingJob."""
    return f"{name}-cleanup"


def read_spec(raw: Json) -> tuple[TrainingJobSpec | None, str]:
    """The spec, or None with the sentence that says what is wrong with it.

    The API server lets nothing else in, but an object may be older than its schema.
    """
    try:
        return TrainingJob.parse({k: v for k, v in raw.items() if k != "status"}).spec, ""
    except ValidationError as error:
        return None, "; ".join(sentences(error)[:3])


def uri_of(text: object) -> Uri | None:
    """The URI that a text is; None for anything else."""
    try:
        return parse(text) if isinstance(text, str) else None
    except UriError:
        return None


def data_uris(spec: TrainingJobSpec) -> dict[str, Uri]:
    """The places that rows come from, and files of the task, by the field that names them."""
    fields: dict[str, str | None] = {}
    if spec.data is not None:
        data = spec.data
        fields["spec.data.uri"] = data.uri
        fields |= {f"spec.data.sources[{source.name}].uri": source.uri for source in data.sources or ()}
        fields["spec.data.validation.uri"] = data.validation.uri
        fields["spec.data.test.uri"] = data.test.uri if data.test is not None else None
        fields["spec.data.tokenizer.uri"] = data.tokenizer.uri if data.tokenizer is not None else None
    if spec.task.chat is not None and spec.task.chat.template is not None:
        fields["spec.task.chat.template.uri"] = spec.task.chat.template.uri
    if spec.task.custom is not None and spec.task.custom.code is not None:
        fields["spec.task.custom.code.uri"] = spec.task.custom.code.uri
    return {field: uri for field, text in fields.items() if (uri := uri_of(text)) is not None}


def training_uris(spec: TrainingJobSpec) -> list[str]:
    """The URIs of the training rows as they are written; none for a custom task without data."""
    if spec.data is None:
        return []
    return [source.uri for source in spec.data.sources or ()] if spec.data.uri is None else [spec.data.uri]


def resume_name(spec: TrainingJobSpec | None) -> str | None:
    """The TrainingJob from whose checkpoint this one goes on."""
    resume = spec.checkpoint.resume_from if spec is not None else None
    return resume.training_job_ref.name if resume is not None and resume.training_job_ref is not None else None


def given_storage(spec: TrainingJobSpec) -> dict[str, PvcUri]:
    """The places to write to that the spec names, by field."""
    fields = {
        "spec.checkpoint.storage.uri": spec.checkpoint.storage,
        "spec.output.storage.uri": spec.output.storage,
    }
    found = {field: uri_of(storage.uri) for field, storage in fields.items() if storage is not None}
    return {field: uri for field, uri in found.items() if isinstance(uri, PvcUri)}


def _referenced(spec: TrainingJobSpec | None, settings: OperatorSettings) -> tuple[set[str], set[str]]:
    shared = uri_of(settings.storage_uri)
    claims = {shared.claim} if isinstance(shared, PvcUri) else set()
    if spec is None:
        return claims, set()
    places: list[Uri] = [*data_uris(spec).values(), *given_storage(spec).values()]
    if spec.model is not None and (weights := uri_of(spec.model.uri)) is not None:
        places.append(weights)
    if spec.checkpoint.resume_from is not None and (state := uri_of(spec.checkpoint.resume_from.uri)) is not None:
        places.append(state)
    claims |= {uri.claim for uri in places if isinstance(uri, PvcUri)}
    return claims, {uri.name for uri in places if isinstance(uri, ConfigMapUri)}


def _is_worker(pod: Child) -> bool:
    return pod.meta.labels.get(names.LABEL_COMPONENT) == COMPONENT_WORKER


def _worker(view: View, pod: Child) -> Worker:
    index = pod.meta.labels.get(INDEX_LABEL) or pod.meta.annotations.get(INDEX_LABEL, "")
    ended = _terminated(pod)
    message = str(ended.get("message") or "")
    progress, heard = parse_progress_text(message), seconds_of(ended.get("finishedAt"))
    report = view.report(pod.meta.uid)
    if progress is None and report is not None:
        progress, heard = parse_progress(report.body), report.time
    code = ended.get("exitCode")
    return Worker(
        pod=pod,
        index=int(index) if index.isdecimal() and len(index) < 7 else None,
        progress=progress,
        heard=heard,
        exit_code=code if isinstance(code, int) else None,
        message=message,
    )


def _terminated(pod: Child) -> Json:
    return next((ended for status in container_statuses(pod) if (ended := state_of(status, "terminated"))), {})


def parse_progress(body: Any) -> Progress | None:
    """A Progress from JSON; fields that a newer worker adds are passed over. None for anything else."""
    if not isinstance(body, Mapping):
        return None
    known = {field.alias or name for name, field in Progress.model_fields.items()}
    try:
        return Progress.model_validate({k: v for k, v in body.items() if k in known})
    except ValidationError:
        return None


def parse_progress_text(text: str) -> Progress | None:
    """A Progress from a termination message, which may be cut off or come from another program."""
    try:
        return Progress.model_validate_json(text) if text.startswith("{") else None
    except ValidationError:
        return None

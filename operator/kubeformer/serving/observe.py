"""Observe: all that a plan for one ModelDeployment is made from, gathered from the View into one frozen value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from kubeformer.api.deployment_status import ModelDeploymentStatus
from kubeformer.api.model_deployment import ModelDeployment, ModelDeploymentSpec
from kubeformer.api.rules import sentences
from kubeformer.api.uri import PvcUri, UriError, parse
from kubeformer.contract import names
from kubeformer.kit.artifacts import Published, published_by
from kubeformer.kit.child import Child, Json, Meta, meta
from kubeformer.kit.readable import readable
from kubeformer.kit.settings import OperatorSettings
from kubeformer.kit.view import Key, View

COMPONENT_SERVER = "server"


@dataclass(frozen=True, slots=True)
class Model:
    """The model to serve. `recorded`: the job that made it says nothing of it any more, the status still does."""

    uri: PvcUri
    digest: str | None = None
    recorded: bool = False
    published: Published | None = None  # by the TrainingJob, as it says now


@dataclass(frozen=True, slots=True)
class Place:
    """Something that servers read: where it is, the claim it is on, and the field that says so."""

    what: str  # as a sentence begins: the field, or what the field stands for
    uri: PvcUri
    claim: Child | None


@dataclass(frozen=True, slots=True)
class Observed:
    """See the module's docstring."""

    key: Key
    meta: Meta
    spec: ModelDeploymentSpec | None  # None: it cannot be read, and `refusal` says why
    refusal: str
    stored: Json
    deployment: Child | None  # ours
    stranger: Child | None  # a Deployment of the same name that is not ours
    pods: tuple[Child, ...]
    config_maps: tuple[Child, ...]
    budget: Child | None
    job: Json | None  # the TrainingJob that spec.model names
    model: Model | None
    places: tuple[Place, ...]  # of the model, if it is known, and of the adapters
    taken: Mapping[str, Key]  # served names that an older deployment claims, and which
    nodes: tuple[Child, ...]
    settings: OperatorSettings
    now: float

    @property
    def name(self) -> str:
        """The ModelDeployment's name, and that of its Deployment and Service."""
        return self.meta.name

    @property
    def conditions(self) -> Sequence[Json]:
        """The stored conditions."""
        found: Sequence[Json] = self.stored.get("conditions") or ()
        return found

    @property
    def served_names(self) -> tuple[str, ...]:
        """The names that the spec asks for; left out, the resource's own."""
        given = tuple(self.spec.model.served_names) if self.spec is not None else ()
        return given or (self.name,)

    @property
    def claimed_names(self) -> tuple[str, ...]:
        """The served names, and those of the adapters: all that requests may ask for."""
        adapters = self.spec.model.adapters if self.spec is not None else ()
        return (*self.served_names, *(adapter.name for adapter in adapters))


def observe(view: View, key: Key, raw: Json, settings: OperatorSettings, now: float) -> Observed:
    """Gather what there is for `key`, whose object is `raw`."""
    own = meta(raw)
    spec, refusal = read_spec(raw)
    stored = readable(ModelDeploymentStatus, raw.get("status"))
    found = view.child(Key("Deployment", key.namespace, key.name))
    ours = found is not None and found.meta.owner_uid == own.uid
    ref = spec.model.training_job_ref if spec is not None else None
    job = view.primary(Key("TrainingJob", key.namespace, ref.name)) if ref is not None else None
    model = _model(spec, job, stored)
    budget = view.child(Key("PodDisruptionBudget", key.namespace, key.name))
    return Observed(
        key=key,
        meta=own,
        spec=spec,
        refusal=refusal,
        stored=stored,
        deployment=found if ours else None,
        stranger=None if ours else found,
        pods=tuple(view.labelled("Pod", key.namespace, names.LABEL_MODEL_DEPLOYMENT, key.name)),
        config_maps=tuple(view.children("ConfigMap", key.namespace, own.uid)),
        budget=budget if budget is not None and budget.meta.owner_uid == own.uid else None,
        job=job,
        model=model,
        places=_places(view, key.namespace, spec, model),
        taken=_taken(view, own, spec),
        nodes=tuple(view.every("Node")),
        settings=settings,
        now=now,
    )


def read_spec(raw: Json) -> tuple[ModelDeploymentSpec | None, str]:
    """The spec, or None with the sentence that says what is wrong with it."""
    try:
        return ModelDeployment.parse({k: v for k, v in raw.items() if k != "status"}).spec, ""
    except ValidationError as error:
        return None, "; ".join(sentences(error)[:3])


def claim_uri(text: object) -> PvcUri | None:
    """The place on a claim that a text is; None for anything else."""
    try:
        uri = parse(text) if isinstance(text, str) else None
    except UriError:
        return None
    return uri if isinstance(uri, PvcUri) else None


def _model(spec: ModelDeploymentSpec | None, job: Json | None, stored: Json) -> Model | None:
    """What to serve: what the spec names, what the job has published, or what was served when it last said so."""
    if spec is None:
        return None
    if spec.model.uri is not None:
        uri = claim_uri(spec.model.uri)
        return Model(uri) if uri is not None else None
    published = published_by(job) if job is not None else Published()
    uri = claim_uri(published.uri)
    if uri is not None:
        return Model(uri, published.digest, published=published)
    lineage, resolved = stored.get("lineage"), stored.get("resolved")
    ref = spec.model.training_job_ref
    if not isinstance(lineage, Mapping) or not isinstance(resolved, Mapping) or ref is None:
        return None
    uri = claim_uri(resolved.get("modelUri"))
    if lineage.get("trainingJob") != ref.name or uri is None:
        return None
    digest = resolved.get("modelDigest")
    return Model(uri, digest if isinstance(digest, str) and digest else None, recorded=True)


def _places(view: View, namespace: str, spec: ModelDeploymentSpec | None, model: Model | None) -> tuple[Place, ...]:
    if spec is None:
        return ()
    of_model = "spec.model.uri" if spec.model.uri is not None else "the model of spec.model.trainingJobRef"
    named = [(of_model, model.uri)] if model is not None else []
    for adapter in spec.model.adapters:
        uri = claim_uri(adapter.uri)
        if uri is not None:
            named.append((f"spec.model.adapters, the uri of {adapter.name},", uri))
    return tuple(
        Place(what, uri, view.child(Key("PersistentVolumeClaim", namespace, uri.claim))) for what, uri in named
    )


def _taken(view: View, own: Meta, spec: ModelDeploymentSpec | None) -> dict[str, Key]:
    """The names that somebody older claims. The gateway goes by the same order: time, namespace, name."""
    if spec is None:
        return {}
    wanted = (*(spec.model.served_names or (own.name,)), *(adapter.name for adapter in spec.model.adapters))
    mine = (own.creation_timestamp, own.namespace, own.name)
    found: dict[str, Key] = {}
    for other in view.primaries("ModelDeployment"):
        theirs = meta(other)
        age = (theirs.creation_timestamp, theirs.namespace, theirs.name)
        if theirs.uid == own.uid or theirs.deletion_timestamp is not None or age >= mine:
            continue
        for name in set(wanted) & set(_claimed(other, theirs.name)):
            found.setdefault(name, Key("ModelDeployment", theirs.namespace, theirs.name))
    return found


def _claimed(body: Json, name: str) -> list[str]:
    spec = body.get("spec")
    model = spec.get("model") if isinstance(spec, Mapping) else None
    given = model.get("servedNames") if isinstance(model, Mapping) else None
    served = [str(n) for n in given] if isinstance(given, list | tuple) and given else [name]
    adapters = model.get("adapters") if isinstance(model, Mapping) else None
    listed = adapters if isinstance(adapters, list | tuple) else ()
    return served + [str(adapter.get("name")) for adapter in listed if isinstance(adapter, Mapping)]

"""ModelDeployment (short name mdep): a model behind an OpenAI-compatible endpoint.

`{model: {trainingJobRef: {name: spam-filter}}}` is a complete spec: one replica, served by the resource's own name.
Everything may be edited at any time; a change rolls out without a refused request.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kubeformer.api.common import NAME_RULE, ObjectMeta, Pod, Resources, TrainingJobRef, Whole
from kubeformer.api.deployment_status import ModelDeploymentStatus
from kubeformer.api.engine import VLLM_RULES, Engine
from kubeformer.api.rules import UNIQUE, Model, Rule, Transition, empty, exactly_one, keyed_by, matching
from kubeformer.api.uri import WeightsUri

ServedName = Annotated[
    str,
    Field(min_length=1, max_length=128),
    matching(
        r"^[A-Za-z0-9]([-A-Za-z0-9._:]*[A-Za-z0-9])?$",
        "must be letters, digits, -, _, . and :, beginning and ending with a letter or digit; "
        "the slash is kept for NAMESPACE/NAME, which always works",
    ),
]


class Adapter(Model):
    """A LoRA adapter, served under a name of its own beside the model."""

    name: ServedName
    """Name by which requests may ask for the model with this adapter."""

    uri: WeightsUri
    """The adapter's directory in PEFT's layout (adapter_config.json, adapter_model.safetensors), as in
    pvc://CLAIM/PATH."""


class ServedModel(Model):
    """What is served: exactly one of trainingJobRef and uri."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("trainingJobRef", "uri", where="spec.model", example="trainingJobRef: {name: spam-filter}"),
        Rule(
            "!has(self.adapters) || !has(self.servedNames) || self.adapters.all(a, !(a.name in self.servedNames))",
            "the name of an adapter must not be one of servedNames, which are the model's without any",
            lambda model: not {adapter.name for adapter in model.adapters} & set(model.served_names),
        ),
    )

    training_job_ref: TrainingJobRef | None = None
    """What that TrainingJob published; waits until it has, and serves on when the job is deleted."""

    uri: WeightsUri | None = None
    """A model directory in Hugging Face layout, as in pvc://models/smollm2."""

    served_names: Annotated[list[ServedName], Field(max_length=16), *UNIQUE] = empty(list)
    """Names by which requests may ask for the model; left out: the resource's name."""

    adapters: Annotated[list[Adapter], Field(max_length=16), *keyed_by("name")] = empty(list)
    """LoRA adapters, each served under its own name beside the model."""


class Rollout(Model):
    """How a new revision takes the place of the old one."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.maxSurge > 0 || self.maxUnavailable > 0",
            "maxSurge and maxUnavailable must not both be 0: no replica could ever be replaced",
            lambda r: r.max_surge > 0 or r.max_unavailable > 0,
        ),
    )

    max_surge: Annotated[int, Field(ge=0, le=1000), Whole] = 1
    """Replicas beyond the number asked for, while rolling out."""

    max_unavailable: Annotated[int, Field(ge=0, le=1000), Whole] = 0
    """Replicas below the number asked for, while rolling out."""


class Sampling(Model):
    """How tokens are chosen where a request does not say; before the model's own generation_config.json."""

    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    """0 takes the likeliest token always; higher is more diverse."""

    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only the likeliest tokens that make up this probability."""

    top_k: Annotated[int, Field(ge=0, le=1_000_000), Whole] | None = None
    """Only so many of the likeliest tokens; 0: all."""

    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only tokens at least this probable relative to the likeliest."""

    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    """Above 1 makes tokens that are there already less likely."""

    max_tokens: Annotated[int, Field(ge=1, le=1_048_576), Whole] | None = None
    """Tokens of an answer, where a request does not say."""

    seed: Annotated[int, Field(ge=0, le=2**31 - 1), Whole] | None = None
    """Makes answers to equal requests equal, where a request gives no seed."""


class ModelDeploymentSpec(Model):
    """What to serve, and how."""

    RULES: ClassVar[tuple[Rule, ...]] = VLLM_RULES

    model: ServedModel
    """What is served, for example trainingJobRef: {name: spam-filter}."""

    engine: Engine = Engine()
    """How the model is run, and by what."""

    replicas: Annotated[int, Field(ge=0, le=1000), Whole] = 1
    """Number of servers; kubectl scale works."""

    resources: Resources = empty(Resources)
    """What each server may use, and what is set aside for it."""

    rollout: Rollout = Rollout()
    """How a new revision takes the place of the old one."""

    drain_seconds: Annotated[int, Field(ge=0, le=86400), Whole] = 300
    """How long a server that is to stop may go on with the answers it has begun; it takes no new requests."""

    sampling: Sampling = empty(Sampling)
    """How tokens are chosen where a request does not say."""

    pod: Pod = empty(Pod)
    """What may be said about the server pods."""


class ModelDeployment(Model):
    """A model behind an OpenAI-compatible endpoint."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        NAME_RULE,
        Rule(
            "!has(self.spec.model.adapters) || self.spec.model.adapters.all(a, a.name != self.metadata.name) || "
            "(has(self.spec.model.servedNames) && self.spec.model.servedNames.size() > 0)",
            "spec.model.adapters: the name of an adapter must not be the resource's own, by which the model is served "
            "without any while servedNames are left out",
            lambda body: (
                bool(body.spec.model.served_names)
                or all(adapter.name != body.metadata.name for adapter in body.spec.model.adapters)
            ),
        ),
    )
    TRANSITIONS: ClassVar[tuple[Transition, ...]] = ()

    api_version: Literal["kubeformer.dev/v1alpha1"] = "kubeformer.dev/v1alpha1"
    """Version of the API."""

    kind: Literal["ModelDeployment"] = "ModelDeployment"
    """Kind of the resource."""

    metadata: ObjectMeta
    """Name, namespace, labels and so on."""

    spec: ModelDeploymentSpec
    """What to serve, and how."""

    status: ModelDeploymentStatus = empty(ModelDeploymentStatus)
    """What the operator says about it."""

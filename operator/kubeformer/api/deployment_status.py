"""The status of a ModelDeployment: what the operator says about it."""

from typing import Annotated

from pydantic import Field

from kubeformer.api.common import Count, Digest, LongCount, Text, Uid
from kubeformer.api.rules import UNIQUE, Lenient, empty, keyed_by
from kubeformer.api.training_status import Conditions, Figure, ImageName, StatusUri


class ResolvedDeployment(Lenient):
    """What was left open in the spec and chosen when the revision was first planned."""

    image: ImageName | None = None
    """Image of the servers."""

    model_uri: StatusUri | None = None
    """Where the model is."""

    model_digest: Digest | None = None
    """Digest of the model, checked before it is served; where it is known."""


class Revision(Lenient):
    """A version of what is served: model, engine and image together."""

    name: Text
    """Name of the revision, a hash."""

    digest: Digest | None = None
    """Digest of its model."""

    weight: Count = 0
    """Share of requests, in percent."""

    replicas: Count = 0
    """Its servers."""

    ready: Count = 0
    """Its servers that answer."""


class Lineage(Lenient):
    """Where the model is from."""

    training_job: Text | None = None
    """Name of the TrainingJob that published it."""

    uid: Uid | None = None
    """uid of that TrainingJob, which may be gone."""

    step: LongCount | None = None
    """Step of its weights."""

    digest: Digest | None = None
    """Digest of the model."""

    data: StatusUri | None = None
    """Rows it was trained on."""

    metrics: Annotated[list[Figure], Field(max_length=16), *keyed_by("name")] = empty(list)
    """Its figures."""


class ModelDeploymentStatus(Lenient):
    """What the operator says about a ModelDeployment."""

    conditions: Conditions = empty(list)
    """How the deployment is doing; Ready is the summary."""

    observed_generation: LongCount | None = None
    """The generation of the spec that this status is about."""

    url: StatusUri | None = None
    """Base URL for OpenAI-compatible clients, /v1 included."""

    replicas: Count | None = None
    """Servers that exist."""

    ready_replicas: Count | None = None
    """Servers that answer."""

    selector: Text | None = None
    """Label selector of the server pods, for kubectl scale and autoscalers."""

    served_names: Annotated[list[Text], Field(max_length=33), *UNIQUE] = empty(list)
    """Names by which requests may ask for the model, or for one of its adapters, now."""

    engine: Text | None = None
    """Engine that serves it: Builtin or VLLM."""

    engine_reason: Text | None = None
    """Why it is that one."""

    resolved: ResolvedDeployment | None = None
    """What was left open in the spec and chosen."""

    revisions: Annotated[list[Revision], Field(max_length=10), *keyed_by("name")] = empty(list)
    """The last 10 revisions, the newest last."""

    lineage: Lineage | None = None
    """Where the model is from."""

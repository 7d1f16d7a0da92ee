"""Shapes that both kinds share: metadata, references, resources, the pod, and how status writes numbers."""

import math
import re
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from kubeformer.api.rules import (
    SUBDOMAIN,
    Lenient,
    Model,
    Name,
    ResourceName,
    Rule,
    avoiding,
    cel_text,
    empty,
    keyed_by,
    matching,
    whole,
    without_nulls,
)
from kubeformer.api.uri import StorageUri
from kubeformer.contract.names import GROUP, RESERVED_ENV_NAMES, RESERVED_ENV_PREFIXES

Whole = BeforeValidator(whole)
Text = Annotated[str, Field(min_length=1, max_length=256)]
Uid = Annotated[str, Field(max_length=64)]
Digest = Annotated[str, Field(max_length=128)]
Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
Number = Annotated[str, Field(max_length=32)]
"""A number in status: text of four significant digits, because it can be NaN."""

Count = Annotated[int, Field(ge=0, le=2**31 - 1), Whole]
LongCount = Annotated[int, Field(ge=0, le=2**53), Whole]

_QUANTITY = matching(
    r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$",
    'must be a quantity: a whole number, or text such as "0.5", 500m or 16Gi',
)
_QUANTITY_RULE = Rule(
    f"type(self) == int ? self >= 0 : {_QUANTITY.cel.replace('self', 'string(self)')}",
    _QUANTITY.message,
    lambda given: (
        _QUANTITY.holds(given)
        if isinstance(given, str)
        else isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**63
    ),
)
Quantity = Annotated[
    int | str,
    PlainValidator(_QUANTITY_RULE.check),
    WithJsonSchema(
        {"x-kubernetes-int-or-string": True, "maxLength": 32, "x-kubernetes-validations": [_QUANTITY_RULE.schema()]}
    ),
]
"""A quantity as Kubernetes writes it: 2, "2", 500m, 16Gi."""

_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
LabelValue = Annotated[
    str,
    Field(max_length=63),
    matching(_LABEL_VALUE, "must be letters, digits, -, _ and ., beginning and ending with a letter or digit"),
]

_SEGMENT = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = f"^({SUBDOMAIN}/)?{_SEGMENT}$"
_KEY_FOUND = re.compile(_KEY.replace("$", r"\Z"))


def _keys(what: str) -> Rule:
    """The rule that a map's keys are qualified names, as of labels."""
    return Rule(
        f"self.all(k, k.matches({cel_text(_KEY)}))",
        f"every {what} must be a name of at most 63 letters, digits, -, _ and ., after a domain and a slash or without",
        lambda given: all(_KEY_FOUND.search(key) for key in given),
    )


ResourceMap = Annotated[dict[str, Quantity], Field(max_length=16), BeforeValidator(without_nulls), _keys("resource")]
NodeSelector = Annotated[dict[str, LabelValue], Field(max_length=16), BeforeValidator(without_nulls), _keys("key")]


def significant(value: float) -> str:
    """A number as status writes it: four significant digits, "NaN" and "Infinity" included."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return f"{value:.4g}"


class ObjectMeta(Lenient):
    """The part of Kubernetes' metadata that is read here."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = empty(dict)
    annotations: dict[str, str] = empty(dict)
    finalizers: list[str] = empty(list)
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


NAME_RULE = Rule(
    "self.metadata.name.size() <= 48 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "metadata.name must have at most 48 lower-case letters, digits and -, beginning with a letter: "
    "what is made for it adds suffixes to the name",
    lambda body: (
        len(body.metadata.name) <= 48 and matching(r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "").holds(body.metadata.name)
    ),
)


class TrainingJobRef(Model):
    """A TrainingJob in the same namespace."""

    name: ResourceName
    """Name of the TrainingJob."""


class LocalObjectRef(Model):
    """An object in the same namespace."""

    name: Name
    """Name of the object."""


class Storage(Model):
    """A directory to write to."""

    uri: StorageUri
    """Directory on a claim that every node can mount, as in pvc://CLAIM/PATH."""


class Resources(Model):
    """Compute resources of one pod, as in Kubernetes: what it may use at most and what is set aside for it."""

    limits: ResourceMap = empty(dict)
    """The most a pod may use, by resource name, such as memory: 16Gi or nvidia.com/gpu: 1. Write cpu as 500m."""

    requests: ResourceMap = empty(dict)
    """What is set aside for a pod; left out, the limits, and without those what the installation was set to."""


class Toleration(Model):
    """A taint of nodes that the pods put up with."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.operator != 'Exists' || !has(self.value)",
            "a toleration with operator Exists takes no value",
            lambda t: t.operator != "Exists" or t.value is None,
        ),
        Rule(
            "has(self.key) || self.operator == 'Exists'",
            "a toleration without a key needs operator: Exists",
            lambda t: t.key is not None or t.operator == "Exists",
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds needs effect: NoExecute",
            lambda t: t.toleration_seconds is None or t.effect == "NoExecute",
        ),
    )

    key: Annotated[str, Field(min_length=1, max_length=317)] | None = None
    """Key of the taint; left out, with operator Exists: every taint."""

    operator: Literal["Equal", "Exists"] = "Equal"
    """Equal compares the value; Exists takes any."""

    value: Annotated[str, Field(max_length=63)] | None = None
    """Value of the taint."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; left out: all."""

    toleration_seconds: LongCount | None = None
    """With NoExecute: how long pods stay after the taint appears; left out: forever."""


_RESERVED = "|".join([*(f"{prefix}.*" for prefix in RESERVED_ENV_PREFIXES), *sorted(RESERVED_ENV_NAMES)])

EnvName = Annotated[
    str,
    Field(min_length=1, max_length=128),
    matching(r"^[A-Za-z_][A-Za-z0-9_]*$", "must be letters, digits and _, not beginning with a digit"),
    avoiding(
        f"^({_RESERVED})$",
        f"is set by Kubeformer itself: names beginning with {', '.join(RESERVED_ENV_PREFIXES)} and "
        f"{', '.join(sorted(RESERVED_ENV_NAMES))} are taken",
    ),
]


class EnvVar(Model):
    """An environment variable."""

    name: EnvName
    """Name of the variable."""

    value: Annotated[str, Field(max_length=4096)] = ""
    """Its value."""


_OURS = Rule(
    f"self.all(k, !k.startsWith('{GROUP}/') && !k.startsWith('app.kubernetes.io/'))",
    f"keys beginning with {GROUP}/ and app.kubernetes.io/ are set by Kubeformer itself",
    lambda labels: not any(k.startswith((f"{GROUP}/", "app.kubernetes.io/")) for k in labels),
)
Labels = Annotated[dict[str, LabelValue], Field(max_length=32), BeforeValidator(without_nulls), _OURS, _keys("key")]
Annotations = Annotated[
    dict[str, Annotated[str, Field(max_length=4096)]],
    Field(max_length=32),
    BeforeValidator(without_nulls),
    _OURS,
    _keys("key"),
]


class Pod(Model):
    """What may be said about the pods themselves. Everything else about them follows from the resource."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the container; left out: the one the installation was set to."""

    image_pull_secrets: Annotated[list[LocalObjectRef], Field(max_length=8), *keyed_by("name")] = empty(list)
    """Secrets in the same namespace for pulling the image."""

    labels: Labels = empty(dict)
    """Further labels of the pods."""

    annotations: Annotations = empty(dict)
    """Further annotations of the pods."""

    node_selector: NodeSelector = empty(dict)
    """Labels that a node must have."""

    tolerations: Annotated[list[Toleration], Field(max_length=32)] = empty(list)
    """Taints that the pods put up with."""

    env: Annotated[list[EnvVar], Field(max_length=64), *keyed_by("name")] = empty(list)
    """Further environment variables. Names that Kubeformer or torchrun set are refused."""

    priority_class_name: Name | None = None
    """PriorityClass of the pods."""

    runtime_class_name: Name | None = None
    """RuntimeClass of the pods."""

    shared_memory: Quantity | None = None
    """Size of /dev/shm, such as 1Gi, counted as memory; left out: the container runtime's 64Mi."""

    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=86400), Whole] | None = None
    """How long a pod may take to stop: a worker to save a checkpoint (left out: 120), a server to finish its answers
    (left out, and at least: drainSeconds and 15)."""

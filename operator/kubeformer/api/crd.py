"""From the pydantic models to CustomResourceDefinitions. Pure: dictionaries out; `crdgen` writes the files.

pydantic speaks JSON Schema, the API server a "structural" dialect of OpenAPI 3.0: no $ref, no null type, no
additionalProperties beside properties, exclusive bounds as booleans. `structural` translates, and refuses a model that
leaves a size open (which would make CEL's cost estimate explode) or a field without a description.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubeformer.api.model_deployment import ModelDeployment
from kubeformer.api.rules import VALIDATIONS
from kubeformer.api.training_job import TrainingJob
from kubeformer.contract.names import GROUP, VERSION

Schema = dict[str, Any]


class SchemaError(Exception):
    """A model that cannot become a CRD; the message names the field."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; with `wide`, of `kubectl get -o wide` alone."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False

    def schema(self) -> Schema:
        """The entry of additionalPrinterColumns."""
        wide = {"priority": 1} if self.wide else {}
        return {"name": self.name, "type": self.type, "jsonPath": self.path} | wide


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind: its model, and the names and columns that the model does not hold."""

    model: type[TrainingJob] | type[ModelDeployment]
    plural: str
    short: str
    columns: tuple[Column, ...]
    scales: bool = False

    @property
    def name(self) -> str:
        """The kind as manifests write it."""
        return self.model.__name__

    @property
    def file(self) -> str:
        """The name of the CRD's file."""
        return f"{GROUP}_{self.plural}.yaml"


def _condition(type: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{type}")].{field}'


def _metric(name: str) -> str:
    return f'.status.metrics[?(@.name=="{name}")].value'


AGE = Column("Age", ".metadata.creationTimestamp", "date")

KINDS: tuple[Kind, ...] = (
    Kind(
        TrainingJob,
        "trainingjobs",
        "tj",
        (
            Column("Status", _condition("Succeeded", "reason")),
            Column("Progress", ".status.progress.summary"),
            Column("Loss", _metric("train/loss")),
            Column("ETA", ".status.progress.eta"),
            Column("Workers", ".status.workers.summary"),
            Column("Restarts", ".status.workers.restarts", "integer"),
            AGE,
            Column("Accuracy", _metric("validation/accuracy"), wide=True),
            Column("Checkpoint", ".status.checkpoint.step", "integer", wide=True),
        ),
    ),
    Kind(
        ModelDeployment,
        "modeldeployments",
        "mdep",
        (
            Column("Ready", _condition("Ready", "status")),
            Column("Reason", _condition("Ready", "reason")),
            Column("Replicas", ".status.readyReplicas", "integer"),
            Column("Engine", ".status.engine"),
            Column("Model", ".status.resolved.modelUri"),
            Column("Revision", ".status.revisions[-1:].name"),
            Column("URL", ".status.url"),
            AGE,
        ),
        scales=True,
    ),
)


def crd(kind: Kind) -> Schema:
    """The CustomResourceDefinition of `kind`."""
    subresources: Schema = {"status": {}}
    if kind.scales:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short],
                "categories": ["kubeformer"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [column.schema() for column in kind.columns],
                    "schema": {"openAPIV3Schema": root(kind)},
                    "subresources": subresources,
                }
            ],
        },
    }


def root(kind: Kind) -> Schema:
    """The schema of a whole object, transition rules included."""
    raw = kind.model.model_json_schema(by_alias=True)
    definitions = raw.pop("$defs")
    parts = raw["properties"]
    # The operator compares the status it wants with the one stored, so the API server must not add to it.
    status = _without_defaults(structural(parts["status"], definitions, "status"))
    rules = [*raw.get(VALIDATIONS, ()), *(transition.schema() for transition in kind.model.TRANSITIONS)]
    return {
        "type": "object",
        "description": raw["description"],
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always {GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"Always {kind.name}."},
            "metadata": {"type": "object"},
            "spec": structural(parts["spec"], definitions, "spec"),
            "status": status,
        },
        VALIDATIONS: rules,
    }


def structural(raw: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    """The structural form of pydantic's schema `raw`. Raises SchemaError, naming `path`."""
    node = _flat(raw, definitions, path)
    if "x-kubernetes-int-or-string" in node:
        return node
    if "type" not in node and "enum" in node:
        node["type"] = "string"
    match node.get("type"):
        case "object":
            _object(node, definitions, path)
        case "array":
            _need(node, "maxItems", path)
            node["items"] = structural(node["items"], definitions, f"{path}[]")
            node.setdefault("x-kubernetes-list-type", "atomic")
        case "string":
            if "enum" not in node:
                _need(node, "maxLength", path)
        case "integer":
            _need(node, "minimum", path)
            _need(node, "maximum", path)
            node["format"] = "int32" if node["maximum"] < 2**31 else "int64"
        case "number":
            node["format"] = "double"
            for bound in ("Minimum", "Maximum"):
                if f"exclusive{bound}" in node:
                    node[bound.lower()] = node[f"exclusive{bound}"]
                    node[f"exclusive{bound}"] = True
            _need(node, "minimum", path)
            _need(node, "maximum", path)
        case "boolean":
            pass
        case other:
            raise SchemaError(f"{path}: a {other} has no structural form")
    return _ordered(node)


def _flat(raw: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    """`raw` with its reference and its "or null" resolved; what stands beside a reference overrides it."""
    node = {key: value for key, value in raw.items() if key != "title"}
    if "anyOf" in node:
        options = [option for option in node.pop("anyOf") if option != {"type": "null"}]
        if len(options) != 1:
            raise SchemaError(f"{path}: a union; give one optional member per variant instead")
        node = _merged(_flat(options[0], definitions, path), node)
    if "$ref" in node:
        name = node.pop("$ref").rsplit("/", 1)[1]
        node = _merged(_flat(definitions[name], definitions, path), node)
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if node.get("default", ...) is None:
        del node["default"]
    return node


def _merged(inner: Schema, outer: Schema) -> Schema:
    rules = [*inner.get(VALIDATIONS, ()), *outer.get(VALIDATIONS, ())]
    return inner | outer | ({VALIDATIONS: rules} if rules else {})


def _object(node: Schema, definitions: Mapping[str, Any], path: str) -> None:
    if "properties" in node:
        node.pop("additionalProperties", None)
        for name, raw in node["properties"].items():
            member = structural(raw, definitions, f"{path}.{name}")
            if "description" not in member:
                raise SchemaError(f"{path}.{name}: has no description")
            node["properties"][name] = member
        if "default" in node:
            # In full: the API server checks a default against the rules before it fills in the members' defaults.
            node["default"] = _without_nulls(node["default"])
    elif isinstance(node.get("additionalProperties"), Mapping):
        _need(node, "maxProperties", path)
        node["additionalProperties"] = structural(node["additionalProperties"], definitions, f"{path}{{}}")
    else:
        raise SchemaError(f"{path}: an object without members")


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_nulls(item) for name, item in value.items() if item is not None}


def _need(node: Schema, key: str, path: str) -> None:
    if key not in node:
        raise SchemaError(f"{path}: has no {key}; every field is bounded")


def _without_defaults(node: Schema) -> Schema:
    clean = {key: value for key, value in node.items() if key != "default"}
    if "properties" in clean:
        clean["properties"] = {name: _without_defaults(member) for name, member in clean["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in clean:
            clean[key] = _without_defaults(clean[key])
    return clean


_ORDER = ("type", "format", "description", "default", "enum")


def _ordered(node: Schema) -> Schema:
    """The keys in the order in which people read them."""
    first = {key: node[key] for key in _ORDER if key in node}
    if "description" in first:
        first["description"] = " ".join(first["description"].split())
    return first | {key: value for key, value in node.items() if key not in first}

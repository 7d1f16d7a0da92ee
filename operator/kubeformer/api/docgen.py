"""docs/reference/api.md from the CRDs' own schemas and the enums of conditions. Pure: text out."""

import json
from collections.abc import Iterator
from typing import Any

from kubeformer.api.conditions import DeploymentCondition, DeploymentReason, Described, JobCondition, JobReason
from kubeformer.api.crd import Kind, Schema, root
from kubeformer.api.rules import VALIDATIONS
from kubeformer.contract.names import GROUP, VERSION

INTRODUCTION = f"""<!-- Generated from operator/kubeformer/api by `make gen`. Do not edit. -->
# Reference: the resources

All resources are namespaced and belong to `{GROUP}/{VERSION}`; `kubectl get kubeformer` lists all of them, and
`kubectl explain tj.spec --recursive` shows what follows.

**What is refused.** Whatever breaks a bound or a rule below is refused at `kubectl apply`, with the field, what was
given and what would be right. Unknown fields are refused too: `kubectl` asks the API server for strict decoding
(`fieldValidation=Strict`) unless told otherwise with `--validate=ignore`; clients that do not ask have unknown fields
dropped silently, so ask. What can only be found out later (no such claim, no such model) becomes a condition.

**Where things are.** `pvc://CLAIM/PATH` is a path on a PersistentVolumeClaim, `configmap://NAME/KEY` one key of a
ConfigMap, both in the resource's own namespace. The path of `data.uri`, `validation.uri` and `test.uri` may hold a glob
(`*`, `[...]`). `..`, user names, queries, fragments and other schemes are refused.

**Numbers.** In a spec they are plain (`learningRate: 3e-4`); in a status they are text of four significant digits,
because a loss can be `NaN`. Quantities are Kubernetes' (`cpu: 500m`, `memory: 16Gi`).
"""

CONDITIONS: dict[str, tuple[type[Described], type[Described]]] = {
    "TrainingJob": (JobCondition, JobReason),
    "ModelDeployment": (DeploymentCondition, DeploymentReason),
}


def reference(kinds: tuple[Kind, ...]) -> str:
    """The whole page."""
    return INTRODUCTION + "".join("\n" + "\n".join(_kind(kind)) + "\n" for kind in kinds)


def _kind(kind: Kind) -> Iterator[str]:
    schema = root(kind)
    yield f"## {kind.name}"
    yield ""
    yield f"{schema['description']} Short name `{kind.short}`."
    yield ""
    for part, title in (("spec", "Spec"), ("status", "Status")):
        yield f"### {kind.name}: {title}"
        yield ""
        yield "| field | type | default | meaning |"
        yield "|---|---|---|---|"
        yield from _rows(schema["properties"][part], part)
        yield ""
    yield f"### {kind.name}: Rules"
    yield ""
    rules = [("the whole", rule["message"]) for rule in schema[VALIDATIONS]]
    for field, message in dict.fromkeys([*rules, *_rules(schema["properties"]["spec"], "spec")]):
        yield f"- {_code(field) if field != 'the whole' else 'The whole'}: {_escaped(message)}."
    yield ""
    for words, title in zip(CONDITIONS[kind.name], ("Conditions", "Reasons"), strict=True):
        yield f"### {kind.name}: {title}"
        yield ""
        yield f"| {title.lower().removesuffix('s')} | meaning |"
        yield "|---|---|"
        for word in words:
            yield f"| {word} | {_escaped(word.meaning)} |"
        yield ""


def _rows(node: Schema, path: str) -> Iterator[str]:
    required = set(node.get("required", ()))
    for name, member in node.get("properties", {}).items():
        field = f"{path}.{name}"
        default = "required" if name in required else _default(member)
        yield f"| {_code(field)} | {_type(member)} | {default} | {_escaped(member['description'])} |"
        yield from _rows(member, field)
        yield from _rows(member.get("items", {}), f"{field}[]")


def _rules(node: Schema, path: str) -> Iterator[tuple[str, str]]:
    for rule in node.get(VALIDATIONS, ()):
        yield path, rule["message"]
    for name, member in node.get("properties", {}).items():
        yield from _rules(member, f"{path}.{name}")
    if "items" in node:
        yield from _rules(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from _rules(node["additionalProperties"], f"{path}.*")


def _default(member: Schema) -> str:
    if "default" not in member:
        return ""
    value = member["default"]
    if "properties" in member:
        value = _beyond(value, member)
    return "" if value == {} else _code(json.dumps(value).strip('"'))


def _beyond(value: Schema, schema: Schema) -> Schema:
    """The part of an object's default that the rows of its members do not show anyway."""
    members = schema["properties"]
    return {
        name: item
        for name, item in value.items()
        if name not in members or ("default" not in members[name] or members[name]["default"] != item)
    }


def _type(member: Schema) -> str:
    if "x-kubernetes-int-or-string" in member:
        return "quantity"
    if "enum" in member:
        return " or ".join(_code(str(option)) for option in member["enum"])
    kind = member["type"]
    if kind == "array":
        return f"list of {_type(member['items'])}, at most {member['maxItems']}"
    if kind in ("integer", "number"):
        return f"{kind}{_bounds(member)}"
    if kind == "object" and "additionalProperties" in member:
        return f"map to {_type(member['additionalProperties'])}"
    if member.get("format") == "date-time":
        return "time"
    return str(kind)


def _bounds(member: Schema) -> str:
    def side(bound: str, sign: str) -> str:
        equal = "" if member.get(f"exclusive{bound.capitalize()}") else "="
        return f"{sign}{equal} {_number(member[bound])}"

    return f" {side('minimum', '>')}, {side('maximum', '<')}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _code(text: str) -> str:
    return f"`{text}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[]", "\\[\\]")

"""values.yaml, values.schema.json and the CRD templates of the chart, from the models. Pure: text out."""

import json
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kubeformer.api.chart_values import ChartValues
from kubeformer.api.crd import Schema

HEADER = "# Generated from operator/kubeformer/api by `make gen`. Do not edit.\n"


class ChartError(Exception):
    """Something that cannot be put into a chart."""


def values_yaml() -> str:
    """The chart's values.yaml: every value with its default and what it means."""
    introduction = (
        HEADER
        + "# Values of the chart. images.operator and images.runtime have no default and must be given.\n"
        + "# An unknown value is refused: values.schema.json is closed.\n"
    )
    return introduction + "\n".join(_lines(ChartValues, None, 0)) + "\n"


def _lines(model: type[BaseModel], value: BaseModel | None, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in model.model_fields.items():
        alias = field.alias or name
        if alias == "global":
            continue
        for line in _wrapped(" ".join((field.description or "").split()), 110 - 2 * depth):
            yield f"{indent}# {line}"
        default = getattr(value, name) if value is not None else field.get_default(call_default_factory=True)
        kind = field.annotation
        if isinstance(default, BaseModel) and type(default).__name__ != "Resources":
            yield f"{indent}{alias}:"
            yield from _lines(type(default), default, depth + 1)
        elif default is PydanticUndefined and isinstance(kind, type) and issubclass(kind, BaseModel):
            yield f"{indent}{alias}:"
            yield from _lines(kind, None, depth + 1)
        elif default is PydanticUndefined:
            yield f"{indent}# {alias}:"
        else:
            plain = default.dump() if hasattr(default, "dump") else default
            yield from (f"{indent}{line}" for line in _entry(alias, plain))
        if depth == 0:
            yield ""


def _entry(name: str, value: Any) -> list[str]:
    """One value as YAML: small things on one line, maps of maps as a block."""
    if isinstance(value, dict) and value:
        return str(yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=None)).splitlines()
    return [f"{name}: {json.dumps(value)}"]


def _wrapped(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    if line:
        yield line


def values_schema() -> str:
    """The chart's values.schema.json."""
    schema = _clean(ChartValues.model_json_schema(by_alias=True))
    text = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(text, indent=2, ensure_ascii=False) + "\n"


def _clean(node: Any) -> Any:
    if isinstance(node, list):
        return [_clean(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _clean(item) for key, item in node.items() if not key.startswith("x-kubernetes-") and key != "title"}
    if "x-kubernetes-int-or-string" in node:
        kept["type"] = ["integer", "string"]
    return kept


def crd_template(crd: Schema) -> str:
    """A CRD as a template: a part of the release, so that upgrades reach it, yet kept when the release goes."""
    metadata = crd["metadata"] | {"annotations": {"helm.sh/resource-policy": "keep"}}
    text = yaml.safe_dump(crd | {"metadata": metadata}, sort_keys=False, width=110, allow_unicode=True)
    if "{{" in text:
        raise ChartError(f"{metadata['name']}: a description or rule holds {{{{, which Helm takes for a template")
    return HEADER + "{{- if .Values.crds.enabled }}\n" + text + "{{- end }}\n"

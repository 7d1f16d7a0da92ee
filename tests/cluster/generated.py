"""Generated resources for comparing verdicts: valid ones by walking a CRD's schema, and mutations of them.

Everything comes from one `random.Random`, so a seed gives the same objects again.
"""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

from kubeformer.api.rules import VALIDATIONS

NAMES = ("a", "spam-filter", "base", "x" * 48)
TEXTS: dict[str, tuple[str, ...]] = {
    "uri": ("pvc://mail/spam.jsonl", "pvc://models/base", "pvc://a", "pvc://a.b-c/d e/ü.csv"),
    "name": NAMES,
    "servedNames": ("assistant", "Org_model-7b.v1:latest", "x"),
    "image": ("registry.example.com/worker:1",),
    "priorityClassName": ("batch", "a.b"),
    "runtimeClassName": ("nvidia",),
    "key": ("example.com/gpu", "k"),
    "value": ("", "v"),
    "labels": ("", "v-1", "A.b_c"),
    "nodeSelector": ("", "v-1", "A.b_c"),
    "annotations": ("", "any text at all", "ü" * 100),
    "textField": ("text", "body", "ein Feld", "x" * 128),
    "labelField": ("label", "ünïcode"),
    **dict.fromkeys(
        (
            *("messagesField", "promptField", "chosenField", "rejectedField", "sourceField", "targetField"),
            *("userField", "itemField", "timeField"),
        ),
        ("a", "ein Feld", "ünïcode"),
    ),
    "command": ("python", "train.py", "--epochs=3"),
    "packages": ("numpy==2.1.0", "torchvision", "a[b]>=1,<2"),
    "url": ("https://example.com/code.git", "https://example.com:8443/a/b"),
    "revision": ("main", "v1.0", "feature/x", "0123abc"),
    "experiment": ("spam", "an experiment"),
    "project": ("spam",),
    "env": ("A", "B_1", "_c", "KUBEFORM"),
    "extraArgs": ("--quantization=fp8", "--enable-auto-tool-choice", "--model-impl=auto", "--hf-overrides.a_b=1"),
}
"""Valid texts by the name of the field (or of the map or list) that they stand in."""

KEYS: dict[str, tuple[str, ...]] = {
    "labels": ("team", "example.com/team", "A_b.c"),
    "annotations": ("team", "example.com/note"),
    "nodeSelector": ("kubernetes.io/arch", "pool"),
    "limits": ("cpu", "memory", "nvidia.com/gpu"),
    "requests": ("cpu", "memory"),
}
QUANTITIES: tuple[Any, ...] = (0, 1, 2, "2", "500m", "16Gi", "0.5", "1.25G")

NASTY: tuple[Any, ...] = (
    "", " ", "\n", "a\n", "-a", "a-", "A", "a..b", "a.b", "1a", "x" * 49, "x" * 64, "x" * 200, "x" * 1200, "ü", "a/b",
    "/a", "a/", "a//b", "RANK", "PET_X", "KUBEFORMER_A", "TORCHELASTIC_1", "WORLD_SIZE", "RANKS", "1", "-1", "1Ei",
    "5 00m", "1e3", "+1", ".5", "1.", "pvc://", "pvc:///x", "pvc://a/", "pvc://a//b", "pvc://a/../b", "pvc://a/..",
    "pvc://a/..b", "pvc://a/./b", "pvc://u@a/b", "pvc://a/b@c", "pvc://a/b?c", "pvc://a/b#c", "pvc://a/*.jsonl",
    "pvc://a*/b", "pvc://a/[0-9].csv", "pvc://A/b", "pvc://a/b\\c", "pvc://a/b\tc", "PVC://a/b", "pvc:/a/b", "a/b",
    "s3://bucket/key", "s3://bucket", "s3://b/*.csv", "https://host/*.csv", "https://host", "https://u:p@host/x",
    "hf://org", "hf://org/name@", "hf://org/name@main/a", "hf://datasets/org/name/a-*.csv", "http://host", "-r x",
    "numpy @ file:///x", "a;b", "hf://org/name", "https://host/x", "file:///x", "configmap://c/k", "configmap://c/k/l",
    "configmap://c", "configmap://c/", "configmap://c/*", "configmap://c/a.jsonl", "configmap://C/a", "pvc://a..b/c",
    "Auto", "auto", "AdamW", "None", "Near", "Exists", "NoExecute", "NoSchedule", "validation/accuracy",
    "validation/loss", "Maximize", "cosine", "true", "null", "yes", "--model=x", "--max-model-l=1", "--a_b",
    "-O3", "--", "--x", "--X", "--speculative-config.method=ngram", "--a b", "--a=", "VLLM", "Builtin", "Reproducible",
)  # fmt: skip
WRONG: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2**31, 2**40, 0.5, -0.5, 1e300, "text", [], {}, [None], {"a": 1})
UNKNOWN = ("extra", "text_field", "batch_size", "Uri", "kubeformer.dev/x", "a b", "")


def members_of(rule: str) -> list[str]:
    """The members that a rule of the form "exactly one" or "at most one" counts."""
    return re.findall(r"\(has\(self\.(\w+)\) \? 1 : 0\)", rule)


class Generator:
    """Objects of one kind, from its root schema."""

    def __init__(self, api_version: str, kind: str, schema: dict[str, Any], seed: int) -> None:
        self._api_version, self._kind, self._schema = api_version, kind, schema
        self._random = random.Random(seed)

    def some(self, mutations: int) -> dict[str, Any]:
        """A random object, mutated so many times. Without mutations it is valid but for rules between fields."""
        spec = self._value(self._schema["properties"]["spec"], "spec", 0.35)
        name = self._random.choice(NAMES)
        body = {"apiVersion": self._api_version, "kind": self._kind, "metadata": {"name": name}, "spec": spec}
        for _ in range(mutations):
            self._mutate(body)
        return body

    def _value(self, schema: dict[str, Any], name: str, chance: float) -> Any:
        if "x-kubernetes-int-or-string" in schema:
            return self._random.choice(QUANTITIES)
        if "enum" in schema:
            return self._random.choice(schema["enum"])
        match schema["type"]:
            case "boolean":
                return self._random.random() < 0.5
            case "integer":
                low, high = schema["minimum"], schema["maximum"]
                return self._random.choice((low, high, self._random.randint(low, min(high, low + 100))))
            case "number":
                low, high = schema["minimum"], schema["maximum"]
                ends = [0.5 * (low + high)]
                ends += [] if schema.get("exclusiveMinimum") else [low]
                ends += [] if schema.get("exclusiveMaximum") else [high]
                return self._random.choice(ends)
            case "string":
                return self._random.choice(TEXTS[name])
            case "array":
                return self._list(schema, name, chance)
        if "additionalProperties" in schema:
            keys = self._random.sample(KEYS[name], self._random.randint(0, len(KEYS[name])))
            return {key: self._value(schema["additionalProperties"], name, chance) for key in keys}
        return self._object(schema, name, chance)

    def _list(self, schema: dict[str, Any], name: str, chance: float) -> list[Any]:
        items = [
            self._value(schema["items"], name, chance)
            for _ in range(self._random.randint(schema.get("minItems", 0), 2))
        ]
        if schema["x-kubernetes-list-type"] == "set":
            return sorted(set(items))
        if schema["x-kubernetes-list-type"] == "map":
            if name == "env":
                for item in items:
                    item["name"] = self._random.choice(TEXTS["env"])
            return list({item["name"]: item for item in items}.values())
        return items

    def _object(self, schema: dict[str, Any], name: str, chance: float) -> dict[str, Any]:
        chosen = set(schema.get("required", ()))
        chosen |= {member for member in schema["properties"] if self._random.random() < chance}
        chosen |= {"data"} & schema["properties"].keys()  # left out, only one kind of task is valid
        for rule in schema.get(VALIDATIONS, ()):
            variants = members_of(rule["rule"])
            if variants:
                one = {self._random.choice(variants)} if "== 1" in rule["rule"] else chosen & {variants[0]}
                chosen = chosen - set(variants) | one
        return {
            member: self._value(part, member, chance)
            for member, part in schema["properties"].items()
            if member in chosen
        }

    def _mutate(self, body: dict[str, Any]) -> None:
        if self._random.random() < 0.03:
            body["metadata"]["name"] = self._random.choice(("A", "1a", "a.b", "x" * 49, "a-", "-", "x" * 48))
            return
        places = list(_places(body["spec"]))
        if not places:
            return
        container, key = self._random.choice(places)
        value = container[key]
        what = self._random.choice(("text", "wrong", "number", "drop", "unknown", "copy", "null", "sibling", "wide"))
        if what == "text":
            container[key] = self._random.choice(NASTY)
        elif what == "wrong":
            container[key] = copy.deepcopy(self._random.choice(WRONG))
        elif what == "number" and isinstance(value, int | float):
            container[key] = self._random.choice((-value, value * 2, value + 1, value - 1, value * 1000, value + 0.5))
            if isinstance(container[key], float) and container[key].is_integer():
                container[key] = int(container[key])  # see kubeformer.api.rules.whole
        elif what == "drop":
            del container[key]
        elif what == "unknown" and isinstance(container, dict):
            container[
                self._random.choice(("extra", "text_field", "batch_size", "Uri", "kubeformer.dev/x", "a b", ""))
            ] = 1
        elif what == "copy" and isinstance(container, list):
            container.append(copy.deepcopy(value))
        elif what == "null":
            container[key] = None
        elif what == "sibling":
            self._add_variant(body["spec"], self._schema["properties"]["spec"])
        elif what == "wide" and isinstance(value, list | dict):
            self._widen(value)

    def _add_variant(self, value: Any, schema: dict[str, Any]) -> None:
        """Add a member somewhere that the object does not have yet: often a second variant."""
        found = list(_objects(value, schema))
        value, schema = self._random.choice(found)
        absent = [member for member in schema["properties"] if member not in value]
        if absent:
            member = self._random.choice(absent)
            value[member] = self._value(schema["properties"][member], member, 0.3)

    def _widen(self, value: list[Any] | dict[str, Any]) -> None:
        if isinstance(value, list):
            value.extend(f"n{i}" for i in range(self._random.choice((1, 15, 16, 17, 40))))
        else:
            value.update({f"k{i}": "1" for i in range(self._random.choice((1, 15, 33)))})


def _places(value: Any) -> Any:
    """Every (container, key) below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def _objects(value: Any, schema: dict[str, Any]) -> Any:
    """Every object below `value` with the schema of its members."""
    if isinstance(value, dict) and "properties" in schema:
        yield value, schema
        for member, part in schema["properties"].items():
            if member in value:
                yield from _objects(value[member], part)
    if isinstance(value, list) and "items" in schema:
        for item in value:
            yield from _objects(item, schema["items"])


def without_empties(value: Any) -> Any:
    """JSON without empty objects and lists, which mean the same as none."""
    if isinstance(value, dict):
        members = {key: without_empties(item) for key, item in value.items()}
        return {key: item for key, item in members.items() if item not in ({}, [])}
    return [without_empties(item) for item in value] if isinstance(value, list) else value


def text(body: Any) -> str:
    """The object on one line, for a message."""
    return json.dumps(body, ensure_ascii=False)

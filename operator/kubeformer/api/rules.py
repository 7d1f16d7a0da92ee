"""What every model of a resource shares: strict camelCase JSON, and rules that pydantic and the API server both hold.

A `Rule` has one sentence and two forms, CEL for the API server and Python for everyone else; a test sends thousands
of objects to both and wants one verdict. Patterns are written in the part of RE2's syntax that Python's `re` shares.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

VALIDATIONS = "x-kubernetes-validations"


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on a value, with the sentence for whoever breaks it.

    In `Annotated[str, Rule(...)]` it holds for a scalar; in a model's RULES it holds for the whole object.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]

    def check(self, value: Any) -> Any:
        """The value itself; raises PydanticCustomError with the sentence where the rule is broken."""
        if not self.holds(value):
            raise PydanticCustomError("rule", self.message)
        return value

    def schema(self) -> dict[str, str]:
        """The entry of x-kubernetes-validations."""
        return {"rule": self.cel, "message": self.message}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        schema[VALIDATIONS] = [*schema.get(VALIDATIONS, ()), self.schema()]
        return schema


@dataclass(frozen=True, slots=True)
class Transition:
    """A condition on a change: `cel` sees `oldSelf`, and `holds` takes the old and the new object."""

    cel: str
    message: str
    holds: Callable[[Any, Any], bool]

    def schema(self) -> dict[str, str]:
        """The entry of x-kubernetes-validations."""
        return {"rule": self.cel, "message": self.message}


def matching(pattern: str, message: str) -> Rule:
    """The rule that a string matches `pattern` somewhere (write ^ and $ for the whole)."""
    found = re.compile(pattern.replace("$", r"\Z"))
    return Rule(f"self.matches({cel_text(pattern)})", message, lambda text: found.search(text) is not None)


def avoiding(pattern: str, message: str) -> Rule:
    """The rule that a string matches `pattern` nowhere."""
    found = re.compile(pattern.replace("$", r"\Z"))
    return Rule(f"!self.matches({cel_text(pattern)})", message, lambda text: found.search(text) is None)


def cel_text(text: str) -> str:
    """A CEL string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def exactly_one(*members: str, example: str, where: str) -> Rule:
    """The rule that exactly one of the optional members (JSON names) is given.

    The sentence shows the braces: a bare `member:` is null in YAML, which the API server drops.
    """
    return Rule(
        f"{_count(members)} == 1",
        f"give exactly one of {_listed(members)} in {where}, for example {example}",
        lambda value: _given(value, members) == 1,
    )


def at_most_one(*members: str, where: str) -> Rule:
    """The rule that no two of the optional members (JSON names) are given together."""
    return Rule(
        f"{_count(members)} <= 1",
        f"give at most one of {_listed(members)} in {where}: they exclude each other",
        lambda value: _given(value, members) <= 1,
    )


def _count(members: tuple[str, ...]) -> str:
    return " + ".join(f"(has(self.{m}) ? 1 : 0)" for m in members)


def _given(value: "Model", members: tuple[str, ...]) -> int:
    names = {field.alias or name: name for name, field in type(value).model_fields.items()}
    return sum(getattr(value, names[m]) is not None for m in members)


def _listed(members: tuple[str, ...]) -> str:
    return ", ".join(members[:-1]) + " and " + members[-1]


class Model(BaseModel):
    """Part of a resource: immutable, snake_case in Python, camelCase in JSON, unknown fields and wrong types refused.

    An explicit null is taken as "left out", as the API server does.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()} | set(cls.model_fields)
        return {key: item for key, item in value.items() if item is not None or key not in known}

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        for rule in self.RULES:
            rule.check(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        target = handler.resolve_ref_schema(schema)
        if cls.RULES:
            target[VALIDATIONS] = [rule.schema() for rule in cls.RULES]
        return schema

    @classmethod
    def parse(cls, body: Any) -> Self:
        """The model of decoded JSON, by its camelCase names alone. Raises pydantic.ValidationError."""
        return cls.model_validate(body, by_alias=True, by_name=False)

    def dump(self) -> dict[str, Any]:
        """JSON as the API server would store it: camelCase, defaults filled in, what is left out left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Lenient(Model):
    """What others write or a later version may have written (metadata, status): unknown fields are passed over."""

    model_config = ConfigDict(extra="ignore")


def _distinct(key: Callable[[Any], Any], what: str) -> AfterValidator:
    def check(items: list[Any]) -> list[Any]:
        seen = [key(item) for item in items]
        if len(set(seen)) < len(seen):
            raise PydanticCustomError("duplicate", "Duplicate value: every {what} may be listed once", {"what": what})
        return items

    return AfterValidator(check)


UNIQUE = (_distinct(lambda item: item, "item"), Field(json_schema_extra={"x-kubernetes-list-type": "set"}))
"""For `Annotated[list[str], *UNIQUE]`: each item once; two owners may each apply some of them."""


def keyed_by(name: str) -> tuple[Any, ...]:
    """For `Annotated[list[M], *keyed_by("name")]`: items are told apart by one field, as in a map."""
    extra: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [name]}
    return (_distinct(lambda item: getattr(item, name), name), Field(json_schema_extra=extra))


def _absent_if_empty(value: Any) -> bool:
    return not (value.model_fields_set if isinstance(value, BaseModel) else value)


def empty(factory: Callable[[], Any]) -> Any:
    """A field that is left out of JSON while it is empty, and needs no test for None in Python."""
    return Field(default_factory=factory, exclude_if=_absent_if_empty)


def whole(value: Any) -> Any:
    """The integer 3 for JSON's 3.0: the API server stores some of those as they are (kubectl never sends them)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def without_nulls(value: Any) -> Any:
    """A map without its nulls, which the API server drops."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value


SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
"""Pattern of the name of most objects of Kubernetes."""

Name = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matching(
        f"^{SUBDOMAIN}$",
        "must be a Kubernetes object's name: lower-case letters, digits, - and .",
    ),
]
"""The name of an object of Kubernetes itself (a claim, a Secret, a priority class)."""

ResourceName = Annotated[
    str,
    Field(min_length=1, max_length=48),
    matching(
        r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        "must be a name of at most 48 lower-case letters, digits and -, beginning with a letter",
    ),
]
"""The name of one of our own resources; short, because children add suffixes."""


def sentences(error: ValidationError) -> list[str]:
    """What is wrong, one sentence a fault: the field as users write it, what was given, and what would be right."""
    found: dict[str, None] = {}  # a dict keeps the order and drops repeats
    for fault in error.errors(include_url=False):
        field = ".".join(str(step) for step in fault["loc"])
        if fault["type"] == "extra_forbidden":
            found[f"{field}: there is no such field"] = None
        elif fault["type"] == "missing":
            found[f"{field}: is required"] = None
        elif isinstance(fault["input"], str | int | float | bool):
            found[f"{field}: {fault['input']!r}: {fault['msg']}"] = None
        else:
            found[f"{field}: {fault['msg']}"] = None
    return list(found)

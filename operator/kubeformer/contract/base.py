"""The base of every document that crosses a room: immutable, camelCase in JSON, unknown fields refused."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Document(BaseModel):
    """A JSON document of the contract; attributes are snake_case in Python and camelCase in JSON."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
        ser_json_inf_nan="strings",
    )


class Location(Document):
    """Something stored: the URI as its owner wrote it and the path under which the pod finds it."""

    uri: str
    path: str
    digest: str | None = None

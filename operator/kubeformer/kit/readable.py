"""Readable: the part of a stored document that fits its model, field by field.

A status may have been written by a later version, or by hand. What does not fit is left out, and so is said anew.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError


def readable(model: type[BaseModel], body: Any) -> dict[str, Any]:
    """The members of `body` that `model` takes, as they are stored. Empty for what is no object."""
    if not isinstance(body, Mapping):
        return {}
    known = {field.alias or name for name, field in model.model_fields.items()}
    found = {name: value for name, value in body.items() if name in known and value is not None}
    try:
        model.model_validate(found, by_alias=True, by_name=False)
    except ValidationError as error:
        broken = {fault["loc"][0] for fault in error.errors(include_url=False, include_input=False) if fault["loc"]}
        return {name: value for name, value in found.items() if name not in broken}
    return found

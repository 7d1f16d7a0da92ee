"""Errors in the shape of OpenAI's API: {"error": {"message", "type", "param", "code"}}, with vLLM's type names.

A message names the field, what was given, and what to do. Nothing of a traceback or of the machine leaves.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web
from pydantic import ValidationError

TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(
        self, status: int, message: str, param: str | None = None, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, headers

    def document(self) -> dict[str, Any]:
        """The body."""
        kind = TYPES.get(self.status, HTTPStatus(self.status).phrase.title().replace(" ", "") + "Error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.status}}

    def response(self) -> web.Response:
        """The whole answer."""
        return web.json_response(self.document(), status=self.status, headers=self.headers)


class FieldError(ValueError):
    """What a validator of a request's body found. `field` is relative to the object; empty: the object itself."""

    def __init__(self, field: str, predicate: str) -> None:
        """`predicate` goes on after the field's name: "is missing; it is required"."""
        super().__init__(predicate)
        self.field = field


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A 400."""
    return ApiError(400, message, param)


def from_validation(error: ValidationError, known: Mapping[str, str]) -> ApiError:
    """The first thing that pydantic found, in a sentence. `known`: why well-known fields are not supported here."""
    found = error.errors(include_url=False)
    # A union reports each of its branches; one that looked inside knows more than "should be a string".
    first = found[0]
    while _is_branch(first["loc"][-1] if first["loc"] else 0):
        above = first["loc"][:-1]
        inside = [e for e in found if len(e["loc"]) > len(first["loc"]) and e["loc"][: len(above)] == above]
        if not inside:
            break
        first = inside[0]
    unknown = first["type"] == "extra_forbidden"  # its last part is the client's own word
    place = [str(part) for part in first["loc"][: len(first["loc"]) - unknown] if not _is_branch(part)]
    place += [str(part) for part in first["loc"][-1:] if unknown]
    if isinstance(cause := first.get("ctx", {}).get("error"), FieldError):
        field = ".".join([*place, *filter(None, [cause.field])]) or "the body"
        return bad_request(f"{field} {cause}.", field)
    field = ".".join(place) or "the body"
    if unknown:
        reason = known.get(field, f"{field} is not a parameter of this endpoint; remove it.")
        return bad_request(reason, field)
    if first["type"] == "missing":
        return bad_request(f"{field} is missing; it is required.", field)
    given = _short(first["input"])
    if first["type"] in ("value_error", "assertion_error"):
        return bad_request(f"{field} is {given}: {first['ctx']['error']}", field)
    wanted = _wanted(first["msg"])
    same = [e for e in found if [str(part) for part in e["loc"] if not _is_branch(part)] == place]
    if len(same) > 1:
        wanted = " or ".join(dict.fromkeys(_wanted(e["msg"]) for e in same))
    return bad_request(f"{field} is {given}; it should be {wanted}.", field)


def _wanted(message: str) -> str:
    """pydantic's sentence as the end of ours."""
    if " or instance of " in message:
        return "an object"
    message = message.removeprefix("Input should be ")
    return message.replace("String should match pattern", "a text that matches")


def _is_branch(part: int | str) -> bool:
    """Whether a part of pydantic's location names a union's branch and not a field, as `list[str]` does."""
    return isinstance(part, str) and (
        any(mark in part for mark in "[]() -")
        or part in {"str", "int", "float", "bool", "none", "dict"}
        or part[:1].isupper()
    )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."

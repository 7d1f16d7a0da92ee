"""What handlers share: the application's keys, and reading a request's body. Every error says what is wrong."""

import asyncio
import json
from collections.abc import Mapping
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from kubeformer_runtime.server.errors import ApiError, bad_request, from_validation
from kubeformer_runtime.server.protocol import NEUTRAL, UNSUPPORTED
from kubeformer_runtime.server.serving import Serving

MAX_BODY = 16 << 20
MAX_DEPTH = 64  # of JSON
BODY_SECONDS = 60.0  # for a body to arrive

SERVING = web.AppKey("serving", Serving)
STALL = web.AppKey("stall_seconds", float)
BodyType = TypeVar("BodyType", bound=BaseModel)


async def parse(
    request: web.Request,
    kind: type[BodyType],
    unsupported: Mapping[str, str] = UNSUPPORTED,
    neutral: Mapping[str, tuple[object, ...]] = NEUTRAL,
) -> BodyType:
    """The request's body.

    `unsupported`: why well-known fields are refused; `neutral`: values of those that are as good as none.

    Raises:
        ApiError: there is something wrong with it.
    """
    if request.content_type != "application/json":
        raise ApiError(415, f"The content type is {request.content_type}; send application/json.")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.read()
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:g} s; send it at once.") from None
    except web.RequestPayloadError:
        raise bad_request("The body cannot be decoded as its headers say; check Content-Encoding.") from None
    document = {
        name: value
        for name, value in decode(raw).items()
        if name not in unsupported or (value is not None and value not in neutral.get(name, ()))
    }
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise from_validation(error, unsupported) from None


def decode(raw: bytes) -> dict[str, object]:
    """Bytes as a JSON object that is Unicode and not too deep. Raises ApiError."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"The body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise bad_request("The body is not a JSON object.")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _depth(document) > MAX_DEPTH:
        raise bad_request(f"The body nests objects and lists more than {MAX_DEPTH} deep; flatten it.")
    if b"\\u" in raw:
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise bad_request("A text holds half of a surrogate pair, which is no character; send Unicode.") from None
    return document


def _depth(document: object) -> int:
    """How deep objects and lists lie in each other."""
    deepest, todo = 0, [(document, 1)]
    while todo:
        value, depth = todo.pop()
        deepest = max(deepest, depth)
        if isinstance(value, dict | list):
            todo.extend((item, depth + 1) for item in (value.values() if isinstance(value, dict) else value))
    return deepest - 1

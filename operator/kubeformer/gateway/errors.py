"""Errors in the shape that OpenAI's clients expect, each with what was given and what to do."""

import json
from collections.abc import Mapping

from aiohttp import web


def error(
    status: int, message: str, kind: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """One error answer; `kind` is OpenAI's `type`."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    return web.Response(status=status, text=json.dumps(body), content_type="application/json", headers=headers)


def invalid_request(message: str, param: str | None = None) -> web.Response:
    """400: the request itself is wrong."""
    return error(400, message, "invalid_request_error", param)


def unknown_model(model: str, known: list[str]) -> web.Response:
    """404: nobody serves that name."""
    served = ", ".join(known[:20]) if known else "none yet; create a ModelDeployment"
    return error(404, f"model: nobody serves '{model}'; the models here are: {served}", "not_found_error", "model")


def not_ready(model: str, reason: str) -> web.Response:
    """503: the model is known, no replica is ready."""
    why = reason or "no replica is ready yet"
    return error(
        503, f"model: '{model}' cannot answer now: {why}", "service_unavailable", "model", {"Retry-After": "5"}
    )


def replicas_failed(model: str, tried: int, why: str) -> web.Response:
    """502: replicas were ready by the API server's account, none answered."""
    message = f"model: {tried} replica(s) of '{model}' did not answer ({why}); try again"
    return error(502, message, "bad_gateway", "model", {"Retry-After": "1"})

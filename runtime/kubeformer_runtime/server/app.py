"""The HTTP server: routes, the rules that hold for all of them, and the handlers that do not generate.

GET  /health /version /metrics /v1/models
POST /v1/completions /v1/chat/completions /classify
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from kubeformer_runtime.engine.async_engine import EngineDeadError
from kubeformer_runtime.engine.sampling_params import ParameterError
from kubeformer_runtime.server.errors import ApiError, bad_request, from_validation
from kubeformer_runtime.server.frames import ChunkFrames
from kubeformer_runtime.server.generate import answer_stream, answer_whole, usage_of
from kubeformer_runtime.server.prepare import Generation, prepare_chat, prepare_completion
from kubeformer_runtime.server.protocol import (
    NEUTRAL,
    UNSUPPORTED,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    StreamOptions,
)
from kubeformer_runtime.server.serving import Phase, Serving

logger = logging.getLogger(__name__)

MAX_BODY = 16 << 20
MAX_DEPTH = 64  # of JSON
BODY_SECONDS = 60.0  # for a body to arrive
STALL_SECONDS = 30.0  # after which a client that reads nothing of its stream is given up
STALL = web.AppKey("stall_seconds", float)
SERVING = web.AppKey("serving", Serving)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BodyType = TypeVar("BodyType", bound=BaseModel)
GenerationBody = TypeVar("GenerationBody", CompletionRequest, ChatRequest)


def make_app(serving: Serving, *, stall_seconds: float = STALL_SECONDS) -> web.Application:
    """The application around one serving state."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors_in_shape])
    app[SERVING], app[STALL] = serving, stall_seconds
    app.add_routes(
        [
            web.get("/health", health),
            web.get("/version", show_version),
            web.get("/metrics", metrics),
            web.get("/v1/models", list_models),
            web.get("/v1/models/{name:.+}", show_model),
            web.post("/v1/completions", completions),
            web.post("/v1/chat/completions", chat_completions),
            web.post("/classify", classify),
        ]
    )
    return app


@web.middleware
async def _errors_in_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves in OpenAI's shape; what went wrong inside stays in the log."""
    try:
        return await handler(request)
    except ApiError as error:
        return error.response()
    except ParameterError as error:
        return bad_request(str(error), error.field).response()
    except EngineDeadError:
        return ApiError(500, "The engine stopped while it answered; try again.").response()
    except web.HTTPNotFound:
        return ApiError(404, f"There is no {request.method} {request.path}.").response()
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return ApiError(405, f"{request.path} takes {allowed}, not {request.method}.").response()
    except web.HTTPRequestEntityTooLarge:
        return ApiError(413, f"The body is larger than {MAX_BODY >> 20} MiB; send less.").response()
    except ConnectionError:
        raise  # the client left
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        return ApiError(500, "The server failed on this request; the reason is in its log.").response()


async def parse(request: web.Request, kind: type[BodyType]) -> BodyType:
    """The request's body. Raises ApiError, which says what is wrong with it."""
    if request.content_type != "application/json":
        raise ApiError(415, f"The content type is {request.content_type}; send application/json.")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.read()
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:g} s; send it at once.") from None
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"The body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise bad_request("The body is not a JSON object.")
    if b"\\u" in raw:
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise bad_request("A text holds half of a surrogate pair, which is no character; send Unicode.") from None
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _depth(document) > MAX_DEPTH:
        raise bad_request(f"The body nests objects and lists more than {MAX_DEPTH} deep; flatten it.")
    document = {
        name: value
        for name, value in document.items()
        if name not in UNSUPPORTED or (value is not None and value not in NEUTRAL.get(name, ()))
    }
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise from_validation(error, UNSUPPORTED) from None


def _depth(document: object) -> int:
    """How deep objects and lists lie in each other."""
    deepest, todo = 0, [(document, 1)]
    while todo:
        value, depth = todo.pop()
        deepest = max(deepest, depth)
        if isinstance(value, dict | list):
            todo.extend((item, depth + 1) for item in (value.values() if isinstance(value, dict) else value))
    return deepest - 1


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await _generate(request, CompletionRequest, prepare_completion)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await _generate(request, ChatRequest, prepare_chat)


async def _generate(
    request: web.Request,
    kind: type[GenerationBody],
    prepare: Callable[[Serving, GenerationBody], Generation],
) -> web.StreamResponse:
    serving = request.app[SERVING]
    with serving.request():
        body = await parse(request, kind)
        generation = prepare(serving, body)
        if body.stream:
            usage = usage_of(generation)
            frames = ChunkFrames(generation, body.stream_options or StreamOptions(), usage)
            return await answer_stream(request, generation, frames, usage, request.app[STALL])
        return await answer_whole(generation)


async def classify(request: web.Request) -> web.StreamResponse:
    """POST /classify, in vLLM's shape: for each input the likeliest label and the probabilities of all."""
    serving = request.app[SERVING]
    with serving.request():
        body = await parse(request, ClassifyRequest)
        labeller, name = serving.need_labeller(), serving.check_model(body.model)
        texts = labeller.model.encode(body.texts)
        began = serving.clock()
        answers = await labeller.engine.classify(texts)
        read = sum(len(tokens) for tokens in texts)
        serving.metrics.classified(len(texts), read, serving.clock() - began)
        data = []
        for index, probabilities in enumerate(answers):
            best = max(range(len(probabilities)), key=lambda label: probabilities[label])
            data.append(
                {
                    "index": index,
                    "label": labeller.engine.labels[best],
                    "probs": probabilities,
                    "num_classes": len(probabilities),
                }
            )
        return web.json_response(
            {
                "id": f"classify-{secrets.token_hex(16)}",
                "object": "list",
                "created": int(serving.wall_clock()),
                "model": name,
                "data": data,
                "usage": {"prompt_tokens": read, "total_tokens": read, "completion_tokens": 0},
            }
        )


async def health(request: web.Request) -> web.Response:
    """200 while requests are welcome; 503 while loading, while draining, and once the engine broke."""
    serving = request.app[SERVING]
    if serving.phase is Phase.READY and serving.alive:
        return web.json_response({"status": "ready"})
    status = serving.phase.value if serving.alive else "dead"
    return web.json_response({"status": status}, status=503)


async def show_version(request: web.Request) -> web.Response:
    """Which engine this is and how it computes."""
    serving = request.app[SERVING]
    part = serving.generator or serving.labeller
    try:
        number = version("kubeformer")
    except PackageNotFoundError:
        number = "0"
    document: dict[str, object] = {"version": number, "engine": "kubeformer"}
    if part is not None:
        document |= {"dtype": str(part.model.dtype).removeprefix("torch."), "max_model_len": part.model.max_model_len}
        document |= {"digest": part.model.digest}
    return web.json_response(document)


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text format."""
    return web.Response(
        body=request.app[SERVING].metrics.expose(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    serving = request.app[SERVING]
    return web.json_response(
        {"object": "list", "data": [_card(serving, name) for name in serving.settings.served_names]}
    )


async def show_model(request: web.Request) -> web.Response:
    """GET /v1/models/NAME."""
    serving = request.app[SERVING]
    return web.json_response(_card(serving, serving.check_model(request.match_info["name"])))


def _card(serving: Serving, name: str) -> dict[str, object]:
    part = serving.generator or serving.labeller
    return {
        "id": name,
        "object": "model",
        "created": serving.started,
        "owned_by": "kubeformer",
        "root": serving.settings.model.uri,
        "parent": None,
        "max_model_len": part.model.max_model_len if part else serving.settings.max_model_length,
    }

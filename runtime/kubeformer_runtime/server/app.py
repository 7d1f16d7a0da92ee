"""The HTTP server: routes, and the rules that hold for all of them.

What generates: prepare.py and generate.py; encoder-decoders: seq2seq.py; what answers with vectors: pooling.py; the
rest: operations.py.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web
from pydantic import ValidationError

from kubeformer_runtime.engine.async_engine import EngineDeadError
from kubeformer_runtime.engine.sampling_params import ParameterError
from kubeformer_runtime.server import adapters, operations, pooling, pooling_protocol, responses_routes, seq2seq
from kubeformer_runtime.server.bodies import MAX_BODY, SERVING, STALL, BodyType, parse
from kubeformer_runtime.server.errors import ApiError, bad_request, from_validation
from kubeformer_runtime.server.frames import ChunkFrames
from kubeformer_runtime.server.generate import answer_stream, answer_whole, send_whole, usage_of
from kubeformer_runtime.server.prepare import Generation, bind, prepare_chat, prepare_completion
from kubeformer_runtime.server.protocol import (
    UNSUPPORTED,
    ChatRequest,
    CompletionRequest,
    StreamOptions,
)
from kubeformer_runtime.server.responses import ResponseStore
from kubeformer_runtime.server.serving import Serving

logger = logging.getLogger(__name__)

LONG_ANSWER = 64 << 10  # bytes that fit the buffers of a connection; longer ones wait for the client
STALL_SECONDS = 30.0  # after which a client that reads nothing of its stream is given up
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
GenerationBody = TypeVar("GenerationBody", CompletionRequest, ChatRequest)


def make_app(serving: Serving, *, stall_seconds: float = STALL_SECONDS) -> web.Application:
    """The application around one serving state."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors_in_shape])
    app[SERVING], app[STALL] = serving, stall_seconds
    app[responses_routes.STORE] = ResponseStore()
    app.add_routes(
        [
            web.get("/health", health),
            web.route("*", "/ping", health),
            web.get("/load", _told(operations.load)),
            web.get("/version", _told(operations.show_version)),
            web.get("/metrics", metrics),
            web.get("/v1/models", _told(operations.list_models)),
            web.get("/v1/models/{name:.+}", show_model),
            web.post("/v1/completions", completions),
            web.post("/v1/chat/completions", chat_completions),
            web.post("/v1/responses", responses_routes.create),
            web.get("/v1/responses/{id}", responses_routes.show),
            web.delete("/v1/responses/{id}", responses_routes.delete),
            web.post("/v1/embeddings", _pooled(pooling_protocol.EmbeddingRequest, pooling.embeddings)),
            web.post("/pooling", _pooled(pooling_protocol.PoolingRequest, pooling.pooling)),
            web.post("/classify", _pooled(pooling_protocol.ClassifyRequest, pooling.classify)),
            *(
                web.post(path, _pooled(pooling_protocol.ScoreRequest, pooling.score))
                for path in ("/score", "/v1/score")
            ),
            *(
                web.post(path, _pooled(pooling_protocol.RerankRequest, pooling.rerank))
                for path in ("/rerank", "/v1/rerank", "/v2/rerank")
            ),
            web.post("/tokenize", _asked(operations.TokenizeRequest, operations.tokenize)),
            web.post("/detokenize", _asked(operations.DetokenizeRequest, operations.detokenize)),
            web.post("/v1/load_lora_adapter", _asked(adapters.LoadAdapterRequest, adapters.load_adapter)),
            web.post("/v1/unload_lora_adapter", _asked(adapters.UnloadAdapterRequest, adapters.unload_adapter)),
            web.post("/abort_requests", _asked(operations.AbortRequest, operations.abort_requests)),
            web.post("/sleep", _ordered(operations.SleepQuery, operations.sleep)),
            web.post("/wake_up", _ordered(operations.NoQuery, operations.wake_up)),
            web.get("/is_sleeping", _told(operations.is_sleeping)),
            web.post("/reset_prefix_cache", _ordered(operations.NoQuery, operations.reset_prefix_cache)),
        ]
    )
    return app


@web.middleware
async def _errors_in_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves in OpenAI's shape; what went wrong inside stays in the log."""
    try:
        response = await handler(request)
        if isinstance(response, web.Response) and (response.content_length or 0) > LONG_ANSWER:
            await send_whole(request, response, request.app[STALL])
        return response
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


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    if (serving := request.app[SERVING]).seq2seq is not None:
        with serving.request():
            return await seq2seq.completions(request)
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
        generation = await bind(prepare(serving, body))
        if body.stream:
            usage = usage_of(generation)
            frames = ChunkFrames(generation, body.stream_options or StreamOptions(), usage)
            return await answer_stream(request, generation, frames, usage, request.app[STALL])
        return await answer_whole(generation)


def _told(answer: Callable[[Serving], object]) -> Handler:
    """A handler for what needs nothing but the state."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response(answer(request.app[SERVING]))

    return handle


def _ordered(kind: type[BodyType], act: Callable[[Serving, BodyType], Awaitable[object]]) -> Handler:
    """A handler for an order to the server itself, whose parameters are in the query."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            query = kind.model_validate(dict(request.query))
        except ValidationError as error:
            raise from_validation(error, UNSUPPORTED) from None
        return web.json_response(await act(request.app[SERVING], query))

    return handle


def _asked(kind: type[BodyType], answer: Callable[[Serving, BodyType], object]) -> Handler:
    """A handler for a body that the engine need not compute anything for."""

    async def handle(request: web.Request) -> web.StreamResponse:
        found = answer(request.app[SERVING], await parse(request, kind))
        return web.json_response(await found if isinstance(found, Awaitable) else found)

    return handle


def _pooled(kind: type[BodyType], answer: Callable[[Serving, BodyType], Awaitable[object]]) -> Handler:
    """A handler for a request that vectors answer; many vectors are written off the event loop."""

    async def handle(request: web.Request) -> web.StreamResponse:
        with request.app[SERVING].request():
            document = await answer(request.app[SERVING], await parse(request, kind))
            text = await asyncio.to_thread(json.dumps, document)
            return web.Response(text=text, content_type="application/json")

    return handle


async def health(request: web.Request) -> web.Response:
    """GET /health and /ping."""
    document, status = operations.health(request.app[SERVING])
    return web.json_response(document, status=status)


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text format."""
    return web.Response(
        body=request.app[SERVING].metrics.expose(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def show_model(request: web.Request) -> web.Response:
    """GET /v1/models/NAME."""
    return web.json_response(operations.show_model(request.app[SERVING], request.match_info["name"]))

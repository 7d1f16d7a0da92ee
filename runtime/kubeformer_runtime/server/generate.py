"""Run what prepare.py made of a request, and answer: whole, or as a stream.

A client that leaves cancels its handler; leaving the `batches` block then aborts what still runs. So does a client
that does not read its stream: the socket's buffers fill, then a write waits, and after `stall_seconds` the
connection is cut.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator
from contextlib import aclosing
from typing import Protocol

from aiohttp import web

from kubeformer_runtime.engine import beam
from kubeformer_runtime.engine.async_engine import BacklogError, EngineDeadError
from kubeformer_runtime.engine.core import Delta
from kubeformer_runtime.engine.sampling_params import ParameterError
from kubeformer_runtime.server.errors import ApiError, bad_request
from kubeformer_runtime.server.metrics import RequestObserver
from kubeformer_runtime.server.prepare import Generation
from kubeformer_runtime.server.shapes import Choice, Usage

logger = logging.getLogger(__name__)

SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class Frames(Protocol):
    """What turns deltas into the bytes of a stream."""

    def open(self) -> bytes:
        """What comes before the first token."""
        ...

    def delta(self, delta: Delta) -> bytes:
        """What a step added to a choice."""
        ...

    def end(self) -> bytes:
        """What comes after the last token."""
        ...

    def failed(self, error: ApiError) -> bytes:
        """The end of an answer that breaks off."""
        ...


class SlowClientError(ConnectionError):
    """The client did not read its answer."""


async def collect(generation: Generation, usage: Usage) -> list[Choice]:
    """All choices of a request, run to their end."""
    choices = [
        Choice(place * generation.n + index, prompt)
        for place, prompt in enumerate(generation.prompts)
        for index in range(generation.n)
    ]
    places = {request.request_id: place * generation.n for place, request in enumerate(generation.requests)}
    async with aclosing(_observed(generation, usage)) as batches:
        async for batch in batches:
            for delta in batch:
                choices[places[delta.request_id] + delta.index].take(delta)
    for choice in choices:  # the first choice of a prompt brings the prompt's for all
        choice.prompt_logprobs = choices[choice.index - choice.index % generation.n].prompt_logprobs
    return choices


async def answer_whole(generation: Generation) -> web.Response:
    """Run to the end and answer at once."""
    usage = usage_of(generation)
    choices = await collect(generation, usage)
    return web.json_response(generation.shape.whole(generation.head, choices, usage))


async def answer_stream(
    request: web.Request, generation: Generation, frames: Frames, usage: Usage, stall_seconds: float
) -> web.StreamResponse:
    """Send what each step brings as server-sent events, in one write a step."""
    response = web.StreamResponse(headers=SSE_HEADERS)
    await response.prepare(request)

    def write(data: bytes) -> Awaitable[None]:
        return patiently(request, response.write(data), stall_seconds)

    try:
        if opening := frames.open():
            await write(opening)
        async with aclosing(_observed(generation, usage)) as batches:
            async for batch in batches:
                if data := b"".join([frames.delta(delta) for delta in batch]):
                    await write(data)
        await write(frames.end())
    except SlowClientError:
        return response
    except ConnectionError:
        raise
    except BacklogError as error:
        _cut(request, f"the client reads too slowly: {error}")
        return response
    except EngineDeadError:
        await write(frames.failed(ApiError(500, "The engine stopped while it answered; try again.")))
    except ParameterError as error:
        await write(frames.failed(bad_request(str(error), error.field)))
    except Exception:
        logger.exception("a streamed answer broke off")
        await write(frames.failed(ApiError(500, "The server failed on this request; the reason is in its log.")))
    with contextlib.suppress(SlowClientError):
        await patiently(request, response.write_eof(), stall_seconds)
    return response


async def send_whole(request: web.Request, response: web.Response, stall_seconds: float) -> None:
    """Send an answer that is too long for the socket's buffers, unless the client does not read it."""
    await response.prepare(request)
    with contextlib.suppress(SlowClientError):
        await patiently(request, response.write_eof(), stall_seconds)


async def patiently(request: web.Request, sending: Awaitable[None], stall_seconds: float) -> None:
    """Wait for bytes to leave. Raises SlowClientError, the connection being cut, where the client does not read."""
    try:
        async with asyncio.timeout(stall_seconds):
            await sending
    except TimeoutError:
        raise _cut(request, f"the client read nothing for {stall_seconds:g} s") from None


def _cut(request: web.Request, why: str) -> SlowClientError:
    """Close the connection at once."""
    logger.warning("%s; its request is aborted", why)
    if request.transport is not None:
        request.transport.abort()
    return SlowClientError(why)


def usage_of(generation: Generation) -> Usage:
    """A request's usage before its first token."""
    return Usage(sum(len(prompt.tokens) for prompt in generation.prompts))


async def _observed(generation: Generation, usage: Usage) -> AsyncGenerator[Iterable[Delta]]:
    """The engine's deltas, those of a step together. Usage and metrics count each as it is read."""
    account = _Account(generation, usage)
    try:
        async with aclosing(_batches(generation)) as batches:
            async for batch in batches:
                yield account.counted(batch)
    except EngineDeadError:
        account.failed()
        raise
    finally:
        account.close()


def _batches(generation: Generation) -> AsyncGenerator[list[Delta]]:
    """What the engine brings, sampled or found by beam search."""
    engine, requests = generation.generator.engine, generation.requests
    if requests[0].params.use_beam_search:
        return beam.batches(engine, generation.generator.model.tokenizer, requests)
    return engine.batches(requests)


class _Account:
    """Counts one request for usage and metrics."""

    def __init__(self, generation: Generation, usage: Usage) -> None:
        serving, params = generation.serving, generation.requests[0].params
        self._clock, self._usage = serving.clock, usage
        self._lengths = {request.request_id: len(request.prompt) for request in generation.requests}
        self._observer = RequestObserver(
            serving.metrics,
            serving.clock(),
            max_tokens=params.max_tokens,
            n=params.n,
            adapter=generation.requests[0].adapter,
        )
        self._unfinished = len(generation.requests) * generation.n

    def counted(self, batch: Iterable[Delta]) -> Iterator[Delta]:
        """The same deltas."""
        now, usage = self._clock(), self._usage
        for delta in batch:
            usage.completion_tokens += len(delta.tokens)
            if delta.finish_reason is not None:
                self._unfinished -= 1
                if delta.index == 0:
                    usage.cached_tokens += delta.num_cached_tokens
            self._observer.delta(delta, self._lengths[delta.request_id], now)
            yield delta

    def failed(self) -> None:
        """The engine broke."""
        self._unfinished = 0
        self._observer.failed()

    def close(self) -> None:
        """What is not finished by now was aborted."""
        if self._unfinished:
            self._observer.aborted(self._unfinished)
        self._observer.close()

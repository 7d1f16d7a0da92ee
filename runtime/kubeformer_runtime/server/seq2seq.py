"""POST /v1/completions over an encoder-decoder: the prompt is the source text, the choice the target.

It writes greedily, or with `best_of` beams where `use_beam_search` is true; one answer a prompt. A stream brings each
answer whole, in a chunk of its own, as soon as it is there.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field

from kubeformer_runtime.engine.async_engine import EngineDeadError
from kubeformer_runtime.engine.messages import Delta
from kubeformer_runtime.engine.seq2seq import Source
from kubeformer_runtime.engine.sequence import FinishReason
from kubeformer_runtime.server.bodies import SERVING, STALL, parse
from kubeformer_runtime.server.errors import ApiError, bad_request
from kubeformer_runtime.server.frames import DONE, frame
from kubeformer_runtime.server.generate import SSE_HEADERS, SlowClientError, patiently
from kubeformer_runtime.server.protocol import NEUTRAL, UNSUPPORTED, Body, CompletionRequest, Prompts, StreamOptions
from kubeformer_runtime.server.serving import Seq2SeqPart, Serving
from kubeformer_runtime.server.shapes import Choice, CompletionShape, Head, Prompt, Usage, Wishes

MAX_BEAMS = 16


class Seq2SeqRequest(Body):
    """What can be asked of an encoder-decoder. `max_tokens`: None for as many as the model can write."""

    model: str | None = None
    prompt: Prompts
    max_tokens: int | None = None
    temperature: float | None = None  # 0, if anything
    use_beam_search: bool = False
    best_of: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = None  # beams
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    request_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def texts(self) -> list[str]:
        """The prompts as a list."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [prompt for prompt in prompts if isinstance(prompt, str)]

    def check(self) -> None:
        """Raises ApiError for token ids, and for fields that mean nothing without another one."""
        if not self.texts:
            raise bad_request("prompt holds token ids; this model takes source texts.", "prompt")
        if self.temperature not in (None, 0):
            raise bad_request(
                f"temperature is {self.temperature:g}, but this model does not sample; leave it out or give 0.",
                "temperature",
            )
        if self.use_beam_search and (self.best_of or 1) == 1:
            raise bad_request(f"use_beam_search needs best_of, the number of beams; give 2 to {MAX_BEAMS}.", "best_of")
        for field, given in (("best_of", self.best_of not in (None, 1)), ("length_penalty", self.length_penalty)):
            if not self.use_beam_search and given not in (None, False):
                raise bad_request(f"{field} needs use_beam_search to be true; set it or leave this out.", field)
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options needs stream to be true; set stream or leave this out.", "stream_options")


# What other models take, and values of it that ask for what happens anyway.
_OTHERS = {
    name: field for name, field in CompletionRequest.model_fields.items() if name not in Seq2SeqRequest.model_fields
}
REFUSED = {
    **{name: reason for name, reason in UNSUPPORTED.items() if name not in Seq2SeqRequest.model_fields},
    **{name: f"{name} has no effect on this model, an encoder-decoder; leave it out." for name in _OTHERS},
    "n": "n is not supported on this model, which gives one answer a prompt; best_of is the number of beams.",
}
AS_NONE: dict[str, tuple[object, ...]] = {
    **{name: values for name, values in NEUTRAL.items() if name in REFUSED},
    **{name: (field.get_default(call_default_factory=True),) for name, field in _OTHERS.items()},
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "stop": ([],),
}


@dataclass(slots=True)
class Asked:
    """One request on its way."""

    serving: Serving
    part: Seq2SeqPart
    body: Seq2SeqRequest
    head: Head
    sources: list[Source]
    usage: Usage
    shape: CompletionShape


async def completions(request: web.Request) -> web.StreamResponse:
    """Answer a request, whole or as a stream."""
    asked = await _prepare(request.app[SERVING], await parse(request, Seq2SeqRequest, REFUSED, AS_NONE))
    if asked.body.stream:
        return await _stream(request, asked)
    choices = [Choice(place, Prompt(list(source.tokens))) for place, source in enumerate(asked.sources)]
    async with aclosing(_deltas(asked)) as deltas:
        async for delta in deltas:
            choices[delta.index].take(delta)
    return web.json_response(asked.shape.whole(asked.head, choices, asked.usage))


async def _prepare(serving: Serving, body: Seq2SeqRequest) -> Asked:
    """Check everything and tokenise off the event loop; ApiError or ParameterError where something is wrong."""
    part, name = serving.need_seq2seq(), serving.check_model(body.model)
    body.check()
    model, most = part.model, body.max_tokens
    if most is None:
        most = min(model.usual_tokens or model.most_tokens, model.most_tokens)
    if not 1 <= most <= model.most_tokens:
        raise bad_request(
            f"max_tokens is {most}; this model writes 1 to {model.most_tokens} tokens, give a number of these.",
            "max_tokens",
        )
    tokens = await asyncio.to_thread(model.encode, body.texts)
    beams = (body.best_of or 1) if body.use_beam_search else 1
    penalty = 1.0 if body.length_penalty is None else body.length_penalty
    sources = [Source(ids, most, beams, penalty) for ids in tokens]
    shape = CompletionShape(lambda token: model.tokenizer.decode([token], skip_special_tokens=False), Wishes())
    head = Head(shape.id_prefix + (body.request_id or secrets.token_hex(16)), int(serving.wall_clock()), name)
    return Asked(serving, part, body, head, sources, Usage(sum(map(len, tokens))), shape)


async def _deltas(asked: Asked) -> AsyncGenerator[Delta]:
    """Each answer as it comes; usage and metrics count it."""
    metrics, clock = asked.serving.metrics, asked.serving.clock
    began, unfinished = clock(), len(asked.sources)
    read = asked.usage.prompt_tokens
    metrics.prompt_tokens.inc(read)
    metrics.computed_tokens.inc(read)
    try:
        async with aclosing(asked.part.engine.write(asked.sources)) as answers:
            async for place, written in answers:
                reason = FinishReason.STOP if written.ended else FinishReason.LENGTH
                unfinished -= 1
                asked.usage.completion_tokens += written.num_tokens
                metrics.generation_tokens.inc(written.num_tokens)
                metrics.success[reason.value].inc()
                metrics.end_to_end.observe(clock() - began)
                metrics.request_prompt.observe(len(asked.sources[place].tokens))
                metrics.request_generation.observe(written.num_tokens)
                metrics.request_max_tokens.observe(asked.sources[place].max_tokens)
                yield Delta(asked.head.id, place, asked.part.model.decode(written), (), reason)
    except EngineDeadError:
        metrics.success["error"].inc(unfinished)
        unfinished = 0
        raise
    finally:
        if unfinished:
            metrics.success["abort"].inc(unfinished)


async def _stream(request: web.Request, asked: Asked) -> web.StreamResponse:
    """Server-sent events in OpenAI's shape: a chunk an answer."""
    options = asked.body.stream_options or StreamOptions()
    response = web.StreamResponse(headers=SSE_HEADERS)
    await response.prepare(request)

    def send(data: bytes) -> Awaitable[None]:
        return patiently(request, response.write(data), request.app[STALL])

    def chunk(document: dict[str, Any]) -> bytes:
        if options.continuous_usage_stats:
            document = {"usage": asked.usage.document()} | document
        elif options.include_usage:
            document = {"usage": None} | document
        return frame(document)

    with contextlib.suppress(SlowClientError):
        try:
            async with aclosing(_deltas(asked)) as deltas:
                async for delta in deltas:
                    await send(chunk(asked.shape.chunk(asked.head, delta.index, delta)))
            if options.include_usage:
                await send(chunk(asked.shape.end(asked.head, asked.usage)))
            await send(DONE)
        except EngineDeadError:
            error = ApiError(500, "The engine stopped while it answered; try again.")
            await send(frame(error.document()) + DONE)
        await patiently(request, response.write_eof(), request.app[STALL])
    return response

"""POST /v1/completions and /v1/chat/completions: from a parsed body to an answer, whole or streamed.

A client that leaves cancels its handler; leaving the `deltas` block then aborts what still runs.
"""

import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from aiohttp import web

from kubeformer_runtime.engine.async_engine import EngineDeadError
from kubeformer_runtime.engine.core import Delta, Request
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.server.chat import no_template
from kubeformer_runtime.server.errors import ApiError, bad_request
from kubeformer_runtime.server.metrics import RequestObserver
from kubeformer_runtime.server.protocol import ChatRequest, CompletionRequest, StreamOptions
from kubeformer_runtime.server.sampling import check_stream_options, resolve
from kubeformer_runtime.server.serving import Generator, Serving
from kubeformer_runtime.server.shapes import ChatShape, Choice, CompletionShape, DecodeToken, Head, Usage

MAX_SEQUENCES = 1024  # prompts times n, of one request
SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


@dataclass(slots=True)
class Generation:
    """One HTTP request on its way: the engine's requests, and how to say what they bring."""

    serving: Serving
    generator: Generator
    head: Head
    shape: ChatShape | CompletionShape
    requests: list[Request]
    prefixes: list[str]  # what each prompt's choices begin with: the prompt, where it is echoed
    opens: bool  # whether a stream opens each choice with a chunk of its own

    @property
    def n(self) -> int:
        return self.requests[0].params.n

    def index(self, delta: Delta) -> int:
        """Which of the answer's choices a delta belongs to."""
        return int(delta.request_id.rpartition("-")[2]) * self.n + delta.index


def prepare_chat(serving: Serving, body: ChatRequest) -> Generation:
    """Render the messages and check everything; ApiError or ParameterError where something is wrong."""
    generator, name = serving.need_generator(), serving.check_model(body.model)
    check_stream_options(body)
    if generator.template is None:
        raise no_template(name)
    messages = [
        {"role": message.role, "content": message.text} | ({"name": message.name} if message.name else {})
        for message in body.messages
    ]
    prompt = generator.template.render(
        messages,
        add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
        variables=body.chat_template_kwargs,
    )
    tokens = generator.model.tokenizer.encode(prompt, add_special_tokens=bool(body.add_special_tokens))
    shape = ChatShape(decode_token(generator), logprobs=body.logprobs)
    return _generation(serving, generator, name, body, shape, [tokens], [""])


def prepare_completion(serving: Serving, body: CompletionRequest) -> Generation:
    """Tokenise the prompts and check everything; ApiError or ParameterError where something is wrong."""
    generator, name = serving.need_generator(), serving.check_model(body.model)
    check_stream_options(body)
    if body.echo and body.logprobs is not None:
        raise bad_request("echo with logprobs is not supported by this server yet; leave one of them out.", "echo")
    prompts = _prompts(body)
    special = True if body.add_special_tokens is None else body.add_special_tokens
    tokenizer, size = generator.model.tokenizer, generator.model.vocab_size
    token_lists: list[list[int]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            token_lists.append(tokenizer.encode(prompt, add_special_tokens=special))
            continue
        if (wrong := next((token for token in prompt if not 0 <= token < size), None)) is not None:
            raise bad_request(f"prompt names token {wrong}; the vocabulary has 0 to {size - 1}.", "prompt")
        token_lists.append(list(prompt))
    prefixes = [""] * len(prompts)
    if body.echo:
        prefixes = [
            prompt
            if isinstance(prompt, str)
            else tokenizer.decode(prompt, skip_special_tokens=body.skip_special_tokens)
            for prompt in prompts
        ]
    shape = CompletionShape(decode_token(generator), logprobs=body.logprobs is not None)
    return _generation(serving, generator, name, body, shape, token_lists, prefixes)


def decode_token(generator: Generator) -> DecodeToken:
    """A function from a token id to its text."""
    return lambda token: generator.model.tokenizer.decode([token], skip_special_tokens=False)


def _prompts(body: CompletionRequest) -> Sequence[str | Sequence[int]]:
    """The prompts, one or several, in whichever of the four forms."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    first = body.prompt[0]
    return [body.prompt] if isinstance(first, int) else body.prompt  # type: ignore[return-value, list-item]


def _generation(
    serving: Serving,
    generator: Generator,
    name: str,
    body: ChatRequest | CompletionRequest,
    shape: ChatShape | CompletionShape,
    prompts: list[list[int]],
    prefixes: list[str],
) -> Generation:
    if len(prompts) * max(body.n, 0) > MAX_SEQUENCES:
        raise bad_request(
            f"{len(prompts)} prompts with n = {body.n} ask for more than {MAX_SEQUENCES} answers; send fewer.", "n"
        )
    model = generator.model
    answer_id = shape.id_prefix + secrets.token_hex(16)
    requests = []
    for index, tokens in enumerate(prompts):
        if not tokens:
            raise bad_request("The prompt has no tokens; give at least one.", "prompt")
        params: SamplingParams = resolve(
            body,
            serving.settings.sampling,
            model.generation,
            prompt_tokens=len(tokens),
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
        )
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        requests.append(Request(f"{answer_id}-{index}", tokens, params, seed))
    head = Head(answer_id, int(serving.wall_clock()), name)
    return Generation(
        serving, generator, head, shape, requests, prefixes, isinstance(shape, ChatShape) or any(prefixes)
    )


async def answer_whole(generation: Generation) -> web.Response:
    """Run to the end and answer at once."""
    choices = [
        Choice(prompt * generation.n + index, prefix)
        for prompt, prefix in enumerate(generation.prefixes)
        for index in range(generation.n)
    ]
    usage = _usage(generation)
    async for delta in _observed(generation, usage):
        choices[generation.index(delta)].take(delta)
    return web.json_response(generation.shape.whole(generation.head, choices, usage))


async def answer_stream(request: web.Request, generation: Generation, options: StreamOptions) -> web.StreamResponse:
    """Send what each step brings as server-sent events, and `[DONE]` at the end."""
    response = web.StreamResponse(headers=SSE_HEADERS)
    usage, shape, head = _usage(generation), generation.shape, generation.head
    extra: dict[str, object] = {"usage": None} if options.include_usage else {}

    def frame(document: dict[str, object]) -> bytes:
        more = {"usage": usage.document()} if options.continuous_usage_stats else extra
        return b"data: " + json.dumps(more | document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

    await response.prepare(request)
    if generation.opens:
        for prompt, prefix in enumerate(generation.prefixes):
            for index in range(generation.n):
                await response.write(frame(shape.first(head, prompt * generation.n + index, prefix)))
    try:
        async for delta in _observed(generation, usage):
            if delta.text or delta.finish_reason is not None or (delta.tokens and delta.tokens[0].logprob is not None):
                await response.write(frame(shape.chunk(head, generation.index(delta), delta)))
        if options.include_usage:
            await response.write(frame(shape.end(head, usage)))
    except EngineDeadError:
        error = ApiError(500, "The engine stopped while it answered; try again.")
        await response.write(b"data: " + json.dumps(error.document()).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _usage(generation: Generation) -> Usage:
    return Usage(sum(len(request.prompt) for request in generation.requests))


async def _observed(generation: Generation, usage: Usage) -> AsyncGenerator[Delta]:
    """The engine's deltas; usage and metrics are kept on the way."""
    serving, params = generation.serving, generation.requests[0].params
    prompt_tokens = {request.request_id: len(request.prompt) for request in generation.requests}
    observer = RequestObserver(serving.metrics, serving.clock(), max_tokens=params.max_tokens, n=params.n)
    unfinished = len(generation.requests) * generation.n
    try:
        async with aclosing(generation.generator.engine.generate(generation.requests)) as deltas:
            async for delta in deltas:
                usage.completion_tokens += len(delta.tokens)
                if delta.finish_reason is not None:
                    unfinished -= 1
                    if delta.index == 0:
                        usage.cached_tokens += delta.num_cached_tokens
                observer.delta(delta, prompt_tokens[delta.request_id], serving.clock())
                yield delta
    except EngineDeadError:
        unfinished = 0
        observer.failed()
        raise
    finally:
        if unfinished:
            observer.aborted(unfinished)

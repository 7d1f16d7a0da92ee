"""The handlers of /v1/responses: create (whole or streamed), show and delete."""

import secrets
from collections.abc import Sequence

from aiohttp import web

from kubeformer_runtime.engine.sampling_params import ParameterError
from kubeformer_runtime.server.bodies import SERVING, STALL, parse
from kubeformer_runtime.server.errors import ApiError, bad_request
from kubeformer_runtime.server.generate import answer_stream, collect, usage_of
from kubeformer_runtime.server.prepare import Generation, bind, chat_tokens, prepare_chat
from kubeformer_runtime.server.protocol import Message
from kubeformer_runtime.server.responses import Narrator, ResponseFrames, ResponseStore
from kubeformer_runtime.server.responses_protocol import (
    NEUTRAL_RESPONSES,
    UNSUPPORTED_RESPONSES,
    ResponsesRequest,
    messages_of,
    renamed,
    to_chat,
)
from kubeformer_runtime.server.serving import Serving
from kubeformer_runtime.server.tools import toolbox_of

SYSTEM = ("system", "developer")
STORE = web.AppKey("response_store", ResponseStore)


async def create(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses."""
    serving, store = request.app[SERVING], request.app[STORE]
    with serving.request():
        body = await parse(request, ResponsesRequest, UNSUPPORTED_RESPONSES, NEUTRAL_RESPONSES)
        _check(body)
        history: list[Message] = []
        if body.previous_response_id is not None:
            history += store.get(body.previous_response_id, "previous_response_id").messages
        said = [*history, *messages_of(body)]
        try:
            generation = await bind(_prepare(serving, body, said))
        except ParameterError as error:
            raise renamed(bad_request(str(error), error.field)) from None
        except ApiError as error:
            raise renamed(error) from None

        def keep(document: dict[str, object], answer: Sequence[Message]) -> None:
            if body.store:
                store.put(document, [*said, *answer])

        usage = usage_of(generation)
        if body.stream:
            frames = ResponseFrames(body, generation, usage, keep)
            return await answer_stream(request, generation, frames, usage, request.app[STALL])
        (choice,) = await collect(generation, usage)
        narrator = Narrator(body, generation, lambda kind, fields: None)
        narrator.say(choice.text, choice.tokens, last=True)
        document = narrator.finish(usage, choice.finish_reason)
        keep(document, narrator.messages())
        return web.json_response(document)


async def show(request: web.Request) -> web.StreamResponse:
    """GET /v1/responses/ID."""
    if request.query:
        name = next(iter(request.query))
        raise bad_request(f"{name} is not supported on this path; leave it out.", name)
    return web.json_response(request.app[STORE].get(request.match_info["id"]).document)


async def delete(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/responses/ID."""
    response_id = request.match_info["id"]
    request.app[STORE].delete(response_id)
    return web.json_response({"id": response_id, "object": "response", "deleted": True})


def _check(body: ResponsesRequest) -> None:
    """Fields that mean nothing without another one."""
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options needs stream to be true; set stream or leave this out.", "stream_options")
    if body.top_logprobs is not None and not body.include:
        raise bad_request(
            'top_logprobs needs include to hold "message.output_text.logprobs"; add it or leave this out.',
            "top_logprobs",
        )
    if body.include and body.tools and body.tool_choice != "none":
        raise bad_request("Log-probabilities are not told beside tools on this path; leave one of them out.", "include")


def _prepare(serving: Serving, body: ResponsesRequest, said: Sequence[Message]) -> Generation:
    """With truncation "auto", as few of the oldest messages are left out as makes the rest fit."""
    if body.truncation == "auto":
        said = _fitting(serving, body, said)
    return prepare_chat(serving, to_chat(body, said), f"resp_{secrets.token_hex(24)}")


def _fitting(serving: Serving, body: ResponsesRequest, said: Sequence[Message]) -> Sequence[Message]:
    """Never without the system's messages at the beginning, nor beginning with the result of a call."""
    generator, name = serving.need_generator(), serving.check_model(body.model)
    room = generator.model.max_model_len - (body.max_output_tokens or 1)
    first = next((place for place, message in enumerate(said) if message.role not in SYSTEM), len(said) - 1)
    cuts = [place for place in range(first, len(said)) if said[place].role != "tool" or place == len(said) - 1]
    low, high = 0, len(cuts) - 1
    while low < high:
        middle = (low + high) // 2
        chat = to_chat(body, [*said[:first], *said[cuts[middle] :]])
        if len(chat_tokens(generator, name, chat, toolbox_of(chat))) <= room:
            high = middle
        else:
            low = middle + 1
    return [*said[:first], *said[cuts[low] :]]

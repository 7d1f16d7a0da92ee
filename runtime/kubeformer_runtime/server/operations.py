"""What operators of a server ask: health, version, models, load, tokens of a text, sleep, caches, aborts.

Each function takes the serving state (and a parsed body) and gives the answer's document; app.py knows the paths.
"""

import asyncio
from collections.abc import Coroutine
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.server.errors import ApiError, bad_request, from_validation
from kubeformer_runtime.server.prepare import render_chat
from kubeformer_runtime.server.protocol import UNSUPPORTED, Body, ChatRequest
from kubeformer_runtime.server.serving import Generator, Phase, Serving
from kubeformer_runtime.server.tools import toolbox_of

Document = dict[str, Any]


async def to_its_end(act: Coroutine[Any, Any, Document]) -> Document:
    """Run an order to its end even where the client that gave it leaves, so that nothing is left half done."""
    return await asyncio.shield(asyncio.ensure_future(act))


def health(serving: Serving) -> tuple[Document, int]:
    """200 while requests are welcome, asleep or not; 503 while loading, while draining, and once the engine broke."""
    if serving.phase is Phase.READY and serving.alive:
        return {"status": "asleep" if serving.asleep else "ready"}, 200
    return {"status": serving.phase.value if serving.alive else "dead"}, 503


def load(serving: Serving) -> Document:
    """Requests between their first and their last byte."""
    return {"server_load": serving.active}


def show_version(serving: Serving) -> Document:
    """Which engine this is and how it computes."""
    try:
        number = version("kubeformer")
    except PackageNotFoundError:
        number = "0"
    settings = serving.settings
    document: Document = {
        "version": number,
        "engine": "kubeformer",
        "numerics": settings.numerics,
        "quantization": settings.quantization,
        "speculative_tokens": settings.speculative_tokens,
    }
    if (part := serving.part) is not None:
        document |= {"dtype": str(part.model.dtype).removeprefix("torch."), "max_model_len": part.model.max_model_len}
        document |= {"digest": part.model.digest}
        document |= {"kernels": serving.generator.engine.core.kernels if serving.generator else "torch"}
    return document


def list_models(serving: Serving) -> Document:
    """The served names, then the adapters with the model that they belong to."""
    names = [*serving.settings.served_names, *serving.adapters]
    return {"object": "list", "data": [show_model(serving, name) for name in names]}


def show_model(serving: Serving, name: str) -> Document:
    """One of them; ApiError 404 for any other."""
    serving.check_model(name)
    adapter, part = serving.adapter(name), serving.part
    return {
        "id": name,
        "object": "model",
        "created": serving.started,
        "owned_by": "kubeformer",
        "root": serving.settings.model.uri if adapter is None else serving.adapters[adapter],
        "parent": None if adapter is None else serving.name,
        "max_model_len": part.model.max_model_len if part else serving.settings.max_model_length,
    }


class TokenizeRequest(Body):
    """POST /tokenize: a prompt, or the messages of a conversation with what else its template reads."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Any], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None  # None: for a prompt, not for messages, whose template has its own
    return_token_strs: bool = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None

    def chat(self) -> ChatRequest:
        """The conversation; ApiError where it is none."""
        names = ("messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools")
        fields = {name: getattr(self, name) for name in names}
        try:
            return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            raise from_validation(error, UNSUPPORTED) from None

    def check(self) -> None:
        """Raise ApiError unless there is one thing to tokenise, and nothing that would have no effect on it."""
        if (self.prompt is None) == (self.messages is None):
            raise bad_request("Give either prompt or messages.", "prompt")
        if self.prompt is not None:
            for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"):
                if getattr(self, name) is not None:
                    raise bad_request(f"{name} belongs to messages and has no effect on a prompt; remove it.", name)


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


def tokenize(serving: Serving, body: TokenizeRequest) -> Document:
    """Token ids of a prompt or a conversation, as a request with it would have them."""
    name, tokenizer = serving.check_model(body.model), _tokenizer(serving)
    body.check()
    if body.prompt is not None:
        text, special = body.prompt, True
    else:
        text, special = _conversation(serving, name, body.chat()), False
    wanted = special if body.add_special_tokens is None else body.add_special_tokens
    tokens = tokenizer.encode(text, add_special_tokens=wanted)
    part = serving.part
    return {
        "count": len(tokens),
        "max_model_len": part.model.max_model_len if part else None,
        "tokens": tokens,
        "token_strs": [tokenizer.tokenizer.id_to_token(token) for token in tokens] if body.return_token_strs else None,
    }


def detokenize(serving: Serving, body: DetokenizeRequest) -> Document:
    """The text of token ids, special ones included."""
    serving.check_model(body.model)
    tokenizer = _tokenizer(serving)
    for token in body.tokens:
        if not 0 <= token < 1 << 31 or tokenizer.tokenizer.id_to_token(token) is None:
            raise bad_request(f"tokens names {token}, which is no token of this model.", "tokens")
    return {"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)}


def _conversation(serving: Serving, name: str, body: ChatRequest) -> str:
    return render_chat(serving.need_generator(), name, body, toolbox_of(body))


def _tokenizer(serving: Serving) -> EngineTokenizer:
    if (part := serving.part) is None:
        raise ApiError(503, "The model is still loading; try again in a few seconds.", headers={"Retry-After": "5"})
    return part.model.tokenizer


class SleepQuery(Body):
    """POST /sleep?level=1. Both levels give weights and cache back here; 2 says that the weights may have changed."""

    level: Literal["1", "2"] = "1"


async def sleep(serving: Serving, query: SleepQuery) -> Document:
    """Give the memory of weights and cache back. What runs waits and goes on after /wake_up; new requests get 503."""
    engine = _sleeper(serving).engine

    async def act() -> Document:
        await engine.call(engine.core.sleep)
        serving.metrics.sleeping(int(query.level))
        return {"is_sleeping": True}

    return await to_its_end(act())


class NoQuery(Body):
    """Orders without parameters."""


async def wake_up(serving: Serving, _: NoQuery) -> Document:
    """Load the weights again. ApiError 500 where they are gone; then it sleeps on."""
    engine = _sleeper(serving).engine

    async def act() -> Document:
        try:
            await engine.call(engine.core.wake)
        except ModelError as error:
            raise ApiError(500, f"The weights cannot be loaded again: {error}") from None
        serving.metrics.sleeping(None)
        return {"is_sleeping": False}

    return await to_its_end(act())


def is_sleeping(serving: Serving) -> Document:
    """Whether /sleep was called."""
    return {"is_sleeping": serving.asleep}


def _sleeper(serving: Serving) -> Generator:
    if serving.generator is None and serving.part is not None:
        kind = "a small encoder" if serving.seq2seq is None else "an encoder-decoder"
        raise bad_request(f"{serving.name} is {kind} and does not sleep; stop the server instead.")
    if serving.phase is not Phase.READY or serving.generator is None:
        raise ApiError(503, "The model is not ready; try again.", headers={"Retry-After": "5"})
    return serving.generator


async def reset_prefix_cache(serving: Serving, _: NoQuery) -> Document:
    """Forget every cached prefix."""
    generator = serving.need_generator()
    await generator.engine.call(generator.engine.core.forget_prefixes)
    return {"success": True}


class AbortRequest(Body):
    """POST /abort_requests: ids as answers carry them; left out: all requests."""

    request_ids: Annotated[list[str], Field(max_length=4096)] | None = None


async def abort_requests(serving: Serving, body: AbortRequest) -> Document:
    """End requests; their clients get what there is, with finish reason "abort". Unknown ids are no error."""
    engine = serving.need_generator().engine
    if body.request_ids is None:
        return {"aborted": await engine.abort()}
    wanted = set(body.request_ids)
    ids = [name for name in engine.request_ids if _answer_id(name) in wanted]
    return {"aborted": await engine.abort(ids)}


def _answer_id(request_id: str) -> str:
    """The id that the client sees of one of the engine's, ID.RUN-INDEX (prepare.py)."""
    return request_id.rpartition("-")[0].rpartition(".")[0]

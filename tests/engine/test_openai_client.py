"""The official `openai` client against this server with SmolLM2-135M: every answer is one that its types know.

The client builds its objects without checking them, so each answer is checked here: it is validated against the
client's own pydantic models, and it may have no field that they do not know, but for those that vLLM sends too.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
import torch
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseCompletedEvent, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from transformers import BertModel

from examples import smollm2
from kubeformer.contract.base import Location
from kubeformer_runtime.engine.loading import LanguageModel, load_engine
from kubeformer_runtime.engine.sampling_params import StructuredOutput
from kubeformer_runtime.engine.structured import StructureCompiler
from kubeformer_runtime.server.protocol import ChatRequest
from kubeformer_runtime.server.tools import toolbox_of
from tests.engine.encoder_builders import BERT, directory_of, loaded
from tests.unit.server.builders import Client, client_of, server_settings

VLLM = {"stop_reason"}  # fields that vLLM sends beside OpenAI's
VLLM_EMBEDDINGS = {"id", "created", "completion_tokens"}
MODEL = "tiny"
HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 3},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """SmolLM2, loaded once."""
    directory: Path = smollm2.ensure()
    settings = server_settings(
        model=Location(uri="pvc://models/smollm2", path=str(directory)), max_model_length=1024, kv_cache_megabytes=96
    )
    found = load_engine(settings, threads=1)
    assert isinstance(found, LanguageModel)
    return found


@pytest_asyncio.fixture
async def client(model: LanguageModel) -> AsyncIterator[AsyncOpenAI]:
    """The official client of a server over it."""
    async with client_of(model) as server, official(server) as found:
        yield found


def official(server: Client) -> AsyncOpenAI:
    """The official client of a server."""
    return AsyncOpenAI(base_url=str(server.http.make_url("/v1")), api_key="none", max_retries=0, timeout=120)


def checked(answer: BaseModel, known: set[str] = VLLM) -> None:
    """Raise where the client's types miss a field, or do not know one."""
    strict = type(answer).model_validate(answer.model_dump(mode="json", by_alias=True, exclude_unset=True))
    unknown: set[str] = set()

    def look(value: object) -> None:
        if isinstance(value, BaseModel):
            unknown.update(value.model_extra or {})
            for name in type(value).model_fields:
                look(getattr(value, name))
        elif isinstance(value, list):
            for item in value:
                look(item)

    look(strict)
    look(answer)
    assert unknown <= known


async def test_a_chat_whole_and_streamed_says_the_same(client: AsyncOpenAI) -> None:
    options: Any = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_completion_tokens": 12}
    whole = await client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    checked(whole)
    assert whole.choices[0].logprobs is not None
    assert whole.usage is not None
    assert len(whole.choices[0].logprobs.content or []) == whole.usage.completion_tokens
    stream = await client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks: list[ChatCompletionChunk] = [chunk async for chunk in stream]
    for chunk in chunks:
        checked(chunk)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content != ""
    async with client.chat.completions.stream(**options) as helper:
        told = [event.delta async for event in helper if event.type == "content.delta"]
    assert "".join(told) == text


async def test_a_completion_whole_and_streamed_says_the_same(client: AsyncOpenAI) -> None:
    options: Any = {"model": MODEL, "prompt": ["The sky is", "Water is"], "temperature": 0, "max_tokens": 8, "n": 2}
    whole = await client.completions.create(**options, logprobs=1)
    checked(whole)
    texts = ["", "", "", ""]
    async for chunk in await client.completions.create(**options, stream=True):
        if chunk.choices[0].finish_reason:  # a chunk before the last has null here, as OpenAI's; their type forgets it
            checked(chunk)
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0] == texts[1] != texts[2]


async def test_models_are_listed(client: AsyncOpenAI) -> None:
    names = [card.id async for card in client.models.list()]
    assert MODEL in names
    assert (await client.models.retrieve(MODEL)).id == MODEL


async def test_embeddings_are_vectors(tmp_path: Path) -> None:
    encoder = loaded(directory_of(tmp_path, BertModel, BERT))
    async with client_of(encoder) as server, official(server) as client:
        forms: tuple[Any, ...] = ({"encoding_format": "float"}, {})  # by itself the client asks for base64
        for form in forms:
            answer = await client.embeddings.create(model=MODEL, input=["a cat", "the mat"], **form)
            checked(answer, VLLM_EMBEDDINGS)
            assert [len(item.embedding) for item in answer.data] == [BERT.hidden_size] * 2


async def test_an_error_is_the_clients_own_exception_and_names_the_field(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model=MODEL, messages=HELLO, temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.responses.create(model="gpt-5", input="Hi")
    assert missing.value.param == "model"


class Weather(BaseModel):
    """A form for answers."""

    sky: Literal["clear", "cloudy"]
    windy: bool
    degrees: Literal[10, 20]


async def test_structured_outputs_are_parsed_into_pydantic(client: AsyncOpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]
    answer = await client.chat.completions.parse(
        model=MODEL, messages=messages, response_format=Weather, max_tokens=60, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)
    response = await client.responses.parse(
        model=MODEL, input="How is the weather in Rome?", text_format=Weather, max_output_tokens=60, temperature=0
    )
    assert response.output_parsed == answer.choices[0].message.parsed


async def test_a_forced_call_has_valid_arguments_whole_and_streamed(client: AsyncOpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    for choice in (named, "required"):
        options: Any = {
            "model": MODEL,
            "messages": messages,
            "tools": [WEATHER],
            "tool_choice": choice,
            "parallel_tool_calls": False,
            "temperature": 0,
            "max_tokens": 80,
        }
        whole = await client.chat.completions.create(**options)
        checked(whole)
        assert whole.choices[0].finish_reason == "tool_calls"
        (call,) = whole.choices[0].message.tool_calls or []
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        assert arguments["city"] in ("Paris", "Rome")
        assert 1 <= arguments["days"] <= 3
        if choice is named:
            continue
        name, streamed = "", ""
        async for chunk in await client.chat.completions.create(**options, stream=True):
            checked(chunk)
            for piece in chunk.choices[0].delta.tool_calls or []:
                assert piece.function is not None
                name += piece.function.name or ""
                streamed += piece.function.arguments or ""
        assert (name, streamed) == ("get_weather", call.function.arguments)


async def test_with_auto_a_strict_function_is_called_with_valid_arguments_only(model: LanguageModel) -> None:
    """Whatever the model would like to write: the grammar leaves text free and binds what follows a tag."""
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    toolbox = toolbox_of(ChatRequest.model_validate({"messages": HELLO, "tools": [strict, TIME]}))
    assert toolbox is not None
    assert toolbox.grammar is not None
    compiler = StructureCompiler(model.tokenizer, {2}, model.vocab_size)
    try:
        compiled = compiler.compile_now(StructuredOutput("grammar", toolbox.grammar))
    finally:
        compiler.close()
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "%s", "days": 1}}</tool_call>'
    other = '<tool_call>\n{"name": "get_time", "arguments": {"zone": "CET"}}\n</tool_call>'
    for text, valid in (
        ("Just a text < with brackets {}.", True),
        ("Let me see. " + call % "Rome" + other, True),
        (call % "Oslo", False),
        ('<tool_call>{"name": "get_news"', False),
    ):
        state = compiled.start()
        for token in model.tokenizer.encode(text, add_special_tokens=False):
            if not state.allowed_V(model.vocab_size, torch.device("cpu"))[token]:
                break
            state.accept(token)
        else:
            assert valid, text
            assert state.allowed_V(model.vocab_size, torch.device("cpu"))[2]
            continue
        assert not valid, text


async def test_a_call_and_its_result_go_back_into_the_conversation(client: AsyncOpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What time is it?"}]
    options: Any = {"model": MODEL, "tools": [TIME], "temperature": 0, "max_tokens": 40}
    asked = await client.chat.completions.create(messages=messages, tool_choice="required", **options)
    (call, *_) = asked.choices[0].message.tool_calls or []
    messages += [asked.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Noon."}]
    answer = await client.chat.completions.create(messages=messages, tool_choice="none", **options)
    checked(answer)
    assert answer.choices[0].message.content


async def test_a_response_whole_and_streamed_says_the_same(client: AsyncOpenAI) -> None:
    options: Any = {"model": MODEL, "input": "Say hello.", "temperature": 0, "max_output_tokens": 12}
    whole = await client.responses.create(**options, instructions="Be kind.", metadata={"a": "b"})
    checked(whole)
    assert whole.metadata == {"a": "b"}
    events: list[ResponseStreamEvent] = []
    async for event in await client.responses.create(**options, instructions="Be kind.", stream=True):
        checked(event)
        events.append(TypeAdapter(ResponseStreamEvent).validate_python(event.model_dump()))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text != ""
    last = events[-1]
    assert last.type == ("response.completed" if whole.status == "completed" else "response.incomplete")
    assert last.response.output_text == text


async def test_a_later_response_goes_on_from_a_stored_one(client: AsyncOpenAI) -> None:
    options: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 8}
    first = await client.responses.create(input="My name is Ada.", **options)
    assert (await client.responses.retrieve(first.id)).output_text == first.output_text
    second = await client.responses.create(input="What is my name?", previous_response_id=first.id, **options)
    by_hand: Any = [
        {"role": "user", "content": "My name is Ada."},
        *(item.model_dump(exclude_none=True) for item in first.output),
        {"role": "user", "content": "What is my name?"},
    ]
    assert (await client.responses.create(input=by_hand, **options)).output_text == second.output_text
    await client.responses.delete(first.id)
    unstored = await client.responses.create(input="Hi", store=False, **options)
    for gone in (first.id, unstored.id):
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(input="Hi", previous_response_id=gone, **options)


async def test_a_responses_call_has_valid_arguments(client: AsyncOpenAI) -> None:
    tool: Any = {"type": "function", "strict": True, **WEATHER["function"]}
    options: Any = {"model": MODEL, "input": "Weather?", "tools": [tool], "tool_choice": "required", "temperature": 0}
    done = None
    async for event in await client.responses.create(**options, parallel_tool_calls=False, stream=True):
        checked(event)
        if isinstance(event, ResponseCompletedEvent):
            done = event.response
    assert done is not None
    (call,) = done.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    answer = await client.responses.create(
        model=MODEL, input=[result], previous_response_id=done.id, temperature=0, max_output_tokens=8
    )
    checked(answer)
    assert answer.output_text

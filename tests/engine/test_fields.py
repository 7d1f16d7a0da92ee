"""Reject or honour, never ignore: every field of a generating request changes the answer, or is refused by its name.

The tables below say how, for each field that the bodies accept. A field that is in no table fails the first test, so
none can be added without showing its effect. The model is tiny and random, or says "Hello, world" whatever it is
asked, where an effect needs a known answer.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import pytest_asyncio

from kubeformer_runtime.server.protocol import NEUTRAL, UNSUPPORTED, ChatRequest, CompletionRequest
from tests.unit.engine.builders import EOS, script_core, tiny_core, until
from tests.unit.server.builders import Client, client_of, language_model

TEMPLATE = (
    "{% if tools %}{{ tools | length }}{% endif %}{{ mood }}{{ reasoning_effort }}"
    "{% for document in documents or [] %}{{ document.text }}{% endfor %}"
    "{% for message in messages %}<{{ message.content }}|{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
Body = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A request without a field and with it."""

    change: Body  # holds the field; what else it holds is in both requests
    base: Body = field(default_factory=dict)
    server: Literal["tiny", "hello"] = "tiny"
    text: str = "ab"


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "additionalProperties": False}}}
OTHER = {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "additionalProperties": False}}}
STREAM = {"stream": True}
LONG = {"temperature": 0, "max_tokens": 40}
SHARED = {
    "model": Case({"model": "tiny-alias"}),
    "n": Case({"n": 2}),
    "temperature": Case({"temperature": 0}),
    "top_p": Case({"top_p": 0.01}),
    "top_k": Case({"top_k": 1}),
    "min_p": Case({"min_p": 1.0}),
    "presence_penalty": Case({"presence_penalty": 2.0}, LONG),
    "frequency_penalty": Case({"frequency_penalty": 2.0}, LONG),
    "repetition_penalty": Case({"repetition_penalty": 5.0}, LONG),
    "seed": Case({"seed": 2}),
    "stop": Case({"stop": "o"}, server="hello"),
    "stop_token_ids": Case({"stop_token_ids": [ord("w")]}, server="hello"),
    "include_stop_str_in_output": Case({"include_stop_str_in_output": True}, {"stop": ["lo"]}, "hello"),
    "ignore_eos": Case({"ignore_eos": True}, {"ignore_eos": False}, "hello"),
    "min_tokens": Case({"min_tokens": 14}, {"ignore_eos": False}, "hello"),
    "max_tokens": Case({"max_tokens": 3}),
    "skip_special_tokens": Case({"skip_special_tokens": False}, server="hello"),
    "logit_bias": Case({"logit_bias": {"65": 100}}),
    "bad_words": Case({"bad_words": ["lo"]}, server="hello"),
    "allowed_token_ids": Case({"allowed_token_ids": [70, 71]}),
    "prompt_logprobs": Case({"prompt_logprobs": 1}),
    "use_beam_search": Case({"use_beam_search": True}, {"temperature": 0, "seed": None, "n": 2}),
    "length_penalty": Case(
        {"length_penalty": -9.0},
        {"temperature": 0, "seed": None, "n": 3, "use_beam_search": True, "ignore_eos": False, "max_tokens": 14},
        "hello",
    ),
    "response_format": Case({"response_format": {"type": "json_object"}}),
    "structured_outputs": Case({"structured_outputs": {"choice": ["yes", "no"]}}),
    "structured_outputs.json": Case({"structured_outputs": {"json": {"type": "boolean"}}}),
    "structured_outputs.regex": Case({"structured_outputs": {"regex": "[xyz]{5}"}}),
    "structured_outputs.choice": Case({"structured_outputs": {"choice": ["a", "b"]}}),
    "structured_outputs.grammar": Case({"structured_outputs": {"grammar": 'start: "a" | "b" start'}}),
    "structured_outputs.json_object": Case({"structured_outputs": {"json_object": True}}),
    "truncate_prompt_tokens": Case({"truncate_prompt_tokens": 1}),
    "truncation_side": Case({"truncation_side": "right"}, {"truncate_prompt_tokens": 1}),
    "cache_salt": Case({"cache_salt": "mine"}, text="a prompt"),  # a prompt that is cached without salt is not with one
    "request_id": Case({"request_id": "mine"}),
    "return_token_ids": Case({"return_token_ids": True}),
    "return_tokens_as_token_ids": Case({"return_tokens_as_token_ids": True}, {"logprobs": 1}),
    "stream": Case(STREAM),
    "stream_options": Case({"stream_options": {"include_usage": True}}, STREAM),
    "stream_options.include_usage": Case({"stream_options": {"include_usage": True}}, STREAM),
    "stream_options.continuous_usage_stats": Case({"stream_options": {"continuous_usage_stats": True}}, STREAM),
    "stream_interval": Case({"stream_interval": 4}, STREAM),
    "add_special_tokens": Case({"add_special_tokens": False}, {"add_special_tokens": True}),
}
COMPLETION = {
    "prompt": Case({"prompt": "other"}),
    "echo": Case({"echo": True}),
    "logprobs": Case({"logprobs": 1}),
}
CHAT = {
    "messages": Case({"messages": [{"role": "user", "content": "other"}]}),
    "max_completion_tokens": Case({"max_completion_tokens": 3}, {"max_tokens": None}),
    "logprobs": Case({"logprobs": True}),
    "top_logprobs": Case({"top_logprobs": 2}, {"logprobs": True}),
    "echo": Case({"echo": True}, {"messages": [{"role": "assistant", "content": "ab"}]}),
    "add_generation_prompt": Case({"add_generation_prompt": False}),
    "continue_final_message": Case({"continue_final_message": True}, {"add_generation_prompt": False}),
    "chat_template_kwargs": Case({"chat_template_kwargs": {"mood": "kind"}}),
    "documents": Case({"documents": [{"text": "a"}]}),
    "reasoning_effort": Case({"reasoning_effort": "low"}),
    "tools": Case({"tools": [TOOL]}),
    "tool_choice": Case({"tool_choice": "required"}, {"tools": [TOOL], "max_tokens": 60}),
    "parallel_tool_calls": Case(
        {"parallel_tool_calls": False},
        {"tools": [TOOL, OTHER], "tool_choice": "required", "max_tokens": 85, "n": 4},
    ),
    "metadata": Case({"metadata": {"a": "b"}}),
    "service_tier": Case({"service_tier": "auto"}),
}
ELSEWHERE = {"priority"}  # changes when an answer comes and not what it says: shown by a test of its own
BASE: Body = {"temperature": 1.0, "seed": 1, "max_tokens": 14, "ignore_eos": True}
CASES = [("completion", name, case) for name, case in {**SHARED, **COMPLETION}.items()] + [
    ("chat", name, case) for name, case in {**SHARED, **CHAT}.items()
]


def test_every_field_is_in_a_table() -> None:
    top = {name for name in SHARED if "." not in name}
    assert set(CompletionRequest.model_fields) == top | set(COMPLETION) | ELSEWHERE
    assert set(ChatRequest.model_fields) == top | set(CHAT) | ELSEWHERE
    for name in ("structured_outputs", "stream_options"):
        (kind,) = (k for k in CompletionRequest.model_fields[name].annotation.__args__ if k is not type(None))  # type: ignore[union-attr]
        parts = {f"{name}.{part.alias or inner}" for inner, part in kind.model_fields.items()}
        assert parts == {entry for entry in SHARED if entry.startswith(f"{name}.")}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def servers() -> AsyncIterator[dict[str, Client]]:
    """One of each kind."""
    from tokenizers import processors

    tiny, hello = (
        language_model(tiny_core(max_model_len=128), chat_template=TEMPLATE),
        language_model(script_core(b"Hello, world", 2), chat_template="{{ messages[0].content }}"),
    )
    tiny.tokenizer.tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 257)]
    )
    async with client_of(tiny) as first, client_of(hello) as second:
        yield {"tiny": first, "hello": second}


async def answer(client: Client, kind: str, body: Body, text: str = "ab") -> object:
    """What a client sees, but for what is new in every answer."""
    if kind == "completion":
        path, body = "/v1/completions", {"prompt": text, **body}
    else:
        path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **body}
    body = {**BASE, "add_special_tokens": False, **body}
    if kind == "chat" and type(body.get("logprobs")) is int:
        body["logprobs"] = True
    documents: list[Any] = (
        await client.stream(path, **body) if body.get("stream") else [await client.post(path, **body)]
    )
    for document in documents:
        del document["created"]
        if not document["id"].endswith("-mine"):
            del document["id"]
        for choice in document["choices"]:
            for part in (choice.get("message", {}), choice.get("delta", {})):
                for call in part.get("tool_calls") or ():
                    call.pop("id", None)
    return documents


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("kind", "name", "case"), CASES, ids=[f"{kind}-{name}" for kind, name, _ in CASES])
async def test_a_field_changes_the_answer(servers: dict[str, Client], kind: str, name: str, case: Case) -> None:
    client = servers[case.server]

    async def ask(body: Body) -> object:
        return await answer(client, kind, body, case.text)

    await ask(case.base)  # from here on the prompt is cached, so that answers say the same of it
    before = await ask(case.base)
    assert await ask(case.base) == before, "the same request has to give the same answer"
    assert await ask(case.base | case.change) != before


async def test_priority_decides_who_waits() -> None:
    """One sequence at a time: of two that wait, the one with the lower number comes first."""
    async with client_of(language_model(tiny_core(max_num_seqs=1))) as client:
        finished: list[str] = []

        async def ask(name: str, priority: int) -> None:
            await client.complete(prompt="ab", max_tokens=20, ignore_eos=True, priority=priority, n=4)
            finished.append(name)

        first = asyncio.create_task(ask("first", 0))
        await until(lambda: client.serving.active == 1)
        late = asyncio.create_task(ask("late", 5))
        await until(lambda: client.serving.active == 2)
        await asyncio.gather(first, late, ask("urgent", -5))
        assert finished.index("urgent") < finished.index("late")


async def test_what_is_not_supported_is_refused_by_its_name() -> None:
    async with client_of(language_model()) as client:
        for name, why in UNSUPPORTED.items():
            if name in NEUTRAL:
                await client.complete(prompt="ab", **{name: NEUTRAL[name][0]})
            for post in (client.complete, client.chat):
                body = {"prompt": "ab"} if post == client.complete else {}
                document = await post(400, **body, **{name: 7})
                assert (document["error"]["message"], document["error"]["param"]) == (why, name)


NAN = float("nan")
WRONG: list[tuple[str, object]] = [
    ("n", 10**9),
    ("n", -1),
    ("max_tokens", -5),
    ("temperature", -0.1),
    ("temperature", NAN),
    ("temperature", float("inf")),
    ("top_p", 0.0),
    ("top_p", NAN),
    ("top_k", -2),
    ("min_p", -0.5),
    ("presence_penalty", 2.5),
    ("frequency_penalty", float("-inf")),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.0),
    ("seed", 2**70),
    ("stop", ""),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [10**12]),
    ("logit_bias", {"300": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"1": 1000}),
    ("logit_bias", {"1": NAN}),
    ("logprobs", 21),
    ("prompt_logprobs", 21),
    ("prompt_logprobs", -1),
    ("bad_words", [""]),
    ("bad_words", ["a"] * 2000),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [EOS, 300]),
    ("min_tokens", -1),
    ("min_tokens", 10**6),
    ("length_penalty", 1.0),
    ("truncate_prompt_tokens", 10**9),
    ("structured_outputs", {"regex": "(a"}),
    ("structured_outputs", {"regex": "a" * (1 << 20)}),
    ("structured_outputs", {"json": {"type": "strin"}}),
    ("structured_outputs", {"grammar": "start: nobody"}),
    ("structured_outputs", {"choice": [""]}),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda item: str(item)[:40])
async def test_a_value_out_of_range_is_refused_by_its_fields_name(
    servers: dict[str, Client], name: str, value: object
) -> None:
    document = await servers["tiny"].complete(400, prompt="ab", **{name: value})
    assert document["error"]["param"].split(".")[0] == name
    assert name.split("_")[0] in document["error"]["message"] or name == "structured_outputs"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("top_k", [0, -1])
async def test_top_k_of_0_and_of_minus_1_mean_every_token(servers: dict[str, Client], top_k: int) -> None:
    client = servers["tiny"]
    assert await answer(client, "completion", {"top_k": top_k}) == await answer(client, "completion", {})

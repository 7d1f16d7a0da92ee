"""Bad requests: every one is a 400 in OpenAI's shape that names the field, and no accepted field is ignored."""

from typing import Any

import pytest

from kubeformer_runtime.server.protocol import NEUTRAL, UNSUPPORTED
from tests.unit.server.builders import Client, client_of, language_model


def error_of(document: dict[str, Any]) -> tuple[str, str | None]:
    assert set(document) == {"error"}
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"], error["param"]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "f"}}
CALL: dict[str, object] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BROKEN: dict[str, object] = {"function": {"name": "f", "arguments": "{"}}


BAD_COMPLETIONS: list[tuple[dict[str, object], str | None, str]] = [
    ({"temperature": "hot"}, "temperature", '"hot"'),
    ({"temperature": "1"}, "temperature", "number"),
    ({"temperature": -1}, "temperature", "between 0"),
    ({"temperature": 1e999}, "temperature", "finite"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_k": 1.5}, "top_k", "integer"),
    ({"n": 0}, "n", "between 1"),
    ({"n": True}, "n", "integer"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": 500}, "max_tokens", "at most 98"),
    ({"stop": [1]}, "stop", "string"),
    ({"stop": ""}, "stop", "empty"),
    ({"stop": ["a"] * 17}, "stop", "at most 16"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "integer"),
    ({"logit_bias": {"999": 1}}, "logit_bias", "999"),
    ({"logprobs": 21}, "logprobs", "between 0 and 20"),
    ({"echo": True, "logprobs": 1, "stream": True}, "echo", "streamed"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "streamed"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
    ({"stream": True, "stream_options": {"foo": 1}}, "stream_options.foo", "not a parameter"),
    ({"prompt": {"a": 1}}, "prompt", "string"),
    ({"prompt": []}, "prompt", "at least 1"),
    ({"prompt": ""}, "prompt", "no tokens"),
    ({"prompt": ["a", 1]}, "prompt.0", "integer"),
    ({"prompt": [1, 999]}, "prompt", "999"),
    ({"prompt": None}, "prompt", "required"),
    ({"prompt": "x" * 200}, "prompt", "200 tokens"),
    ({"prompt": "\ud800"}, None, "surrogate"),
    ({"best_of": 3}, "best_of", "use n"),
    ({"temprature": 1}, "temprature", "not a parameter"),
    ({"guided_json": {}}, "guided_json", "structured_outputs"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-1"),
    ({"truncate_prompt_tokens": 1000}, "truncate_prompt_tokens", "at most 100"),
    ({"truncation_side": "left"}, "truncation_side", "truncate_prompt_tokens"),
    ({"stream_interval": 2}, "stream_interval", "stream"),
    ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids", "logprobs"),
    ({"request_id": "a b"}, "request_id", "matches"),
    ({"cache_salt": ""}, "cache_salt", "at least 1"),
    ({"priority": 2**40}, "priority", "less than"),
    ({"seed": 2**70}, "seed", "less than"),
]


async def test_a_bad_completion_request_says_which_field_and_why(client: Client) -> None:
    for body, param, words in BAD_COMPLETIONS:
        message, field = error_of(await client.complete(400, **{"prompt": "ab", **body}))
        assert field is param is None or (field or "").startswith(param or "-"), body
        assert words in message, body


BAD_CHATS: list[tuple[dict[str, object], str, str]] = [
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "string"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content",
        "text",
    ),
    ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages", "at most 100"),
    ({"messages": [{"role": "user", "content": "a", "tool_call_id": "x"}]}, "messages.0.tool_call_id", "tool"),
    ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "x"}]}, "messages.0.tool_call_id", "before it"),
    ({"messages": [{"role": "user", "tool_calls": [CALL]}]}, "messages.0.tool_calls", "assistant"),
    ({"messages": [{"role": "assistant", "tool_calls": [CALL | BROKEN]}]}, "messages.0.tool_calls.0", "JSON"),
    ({"tools": [{"type": "function"}]}, "tools.0.function", "required"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "matches"),
    ({"tools": [TOOL, TOOL]}, "tools", "two functions called f"),
    ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", "'required'"),
    ({"tools": [TOOL], "tool_choice": NAMED | {"function": {"name": "g"}}}, "tool_choice", "only f"),
    ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format", "exclude"),
    ({"tools": [TOOL], "structured_outputs": {"regex": "a"}}, "structured_outputs", "exclude"),
    ({"tool_choice": "auto"}, "tool_choice", "needs tools"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls", "needs tools"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "neither"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "schema"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"backend": "x"}}, "structured_outputs.backend", "not a parameter"),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "structured_outputs",
        "exclude",
    ),
    ({"documents": [{"text": "a"}]}, "documents", "template"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "template"),
    ({"chat_template_kwargs": {"mood": "kind"}}, "chat_template_kwargs.mood", "no effect"),
    ({"echo": True}, "echo", "assistant"),
    ({"metadata": {"a": 1}}, "metadata.a", "string"),
    ({"service_tier": "flex"}, "service_tier", "'default'"),
    ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
    ({"logprobs": True, "top_logprobs": 30}, "top_logprobs", "between 0 and 20"),
    ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens", "exclude"),
    ({"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
    ({"continue_final_message": True}, "continue_final_message", "content"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "messages"),
    ({"prompt": "x"}, "prompt", "not a parameter"),
]


async def test_a_bad_chat_request_says_which_field_and_why(client: Client) -> None:
    for body, param, words in BAD_CHATS:
        messages = {"messages": [{"role": "user", "content": ""}]} if "continue_final_message" in body else {}
        message, field = error_of(await client.chat(400, **body, **messages))
        assert (field or "").startswith(param), body
        assert words in message, body


async def test_what_is_not_supported_is_refused_by_name_and_null_is_nothing(client: Client) -> None:
    for field, why in UNSUPPORTED.items():
        assert error_of(await client.complete(400, prompt="ab", **{field: 7})) == (why, field)
    await client.complete(prompt="ab", **dict.fromkeys(UNSUPPORTED))


async def test_a_value_that_asks_for_what_happens_anyway_is_as_good_as_none(client: Client) -> None:
    await client.complete(prompt="ab", **{field: values[0] for field, values in NEUTRAL.items()})


async def test_an_unknown_model_is_404_and_says_which_there_are(client: Client) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/classify"):
        body = {"model": "gpt-5", "prompt": "a"} if path == "/v1/completions" else {"model": "gpt-5"}
        if "chat" in path:
            body = {"model": "gpt-5", "messages": [{"role": "user", "content": "a"}]}  # type: ignore[dict-item]
        if path == "/classify":
            continue  # a language model has no classes, whatever its name
        document = await client.post(path, 404, **body)
        message, param = error_of(document)
        assert param == "model"
        assert "gpt-5" in message
        assert "tiny" in message
        assert document["error"]["type"] == "NotFoundError"


@pytest.mark.parametrize(
    ("body", "content_type", "status", "words"),
    [
        (b"{bad", "application/json", 400, "not JSON"),
        (b"[" * 100_000, "application/json", 400, "not JSON"),
        (b"\xff\xfe{}", "application/json", 400, "not JSON"),
        (b"[]", "application/json", 400, "not a JSON object"),
        (b"", "application/json", 400, "not JSON"),
        (b"<a/>", "text/xml", 415, "text/xml"),
    ],
)
async def test_a_body_that_is_no_json_object(
    client: Client, body: bytes, content_type: str, status: int, words: str
) -> None:
    async with client.http.post("/v1/completions", data=body, headers={"Content-Type": content_type}) as response:
        assert response.status == status
        assert words in error_of(await response.json())[0]


async def test_paths_and_methods_that_do_not_exist_answer_in_the_same_shape(client: Client) -> None:
    async with client.http.get("/v1/nothing") as response:
        assert (response.status, error_of(await response.json())[0]) == (404, "There is no GET /v1/nothing.")
    async with client.http.get("/v1/completions") as response:
        assert (response.status, error_of(await response.json())[0]) == (405, "/v1/completions takes POST, not GET.")


async def test_a_model_without_chat_template_says_what_to_use_instead() -> None:
    async with client_of(language_model(chat_template=None)) as client:
        assert "/v1/completions" in error_of(await client.chat(400))[0]


async def test_a_template_that_refuses_the_messages_is_a_400() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    async with client_of(language_model(chat_template=template)) as client:
        message, param = error_of(await client.chat(400))
    assert "roles must alternate" in message
    assert param == "messages"


async def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    template = "{{ messages.__class__.__mro__ }}"
    async with client_of(language_model(chat_template=template)) as client:
        assert "unsafe" in error_of(await client.chat(400))[0]

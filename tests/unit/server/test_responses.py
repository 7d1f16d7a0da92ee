"""/v1/responses: items and events, going on from what is stored, and errors in this path's words."""

import json
from typing import Any

import pytest

from kubeformer_runtime.server.errors import ApiError
from kubeformer_runtime.server.protocol import Message
from kubeformer_runtime.server.responses import ResponseStore
from kubeformer_runtime.server.responses_protocol import UNSUPPORTED_RESPONSES, ResponsesRequest, messages_of
from tests.unit.engine.builders import script_core
from tests.unit.server.builders import Client, client_of, language_model

HELLO = b"Hello, world"
PROMPT = "<user>a\n<assistant>"
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}


async def respond(client: Client, status: int = 200, /, **body: object) -> dict[str, Any]:
    """POST /v1/responses; greedy unless `body` says otherwise."""
    return await client.post("/v1/responses", status, **{"input": "a", "temperature": 0, **body})


async def events(client: Client, **body: object) -> list[tuple[str, dict[str, Any]]]:
    """The events of a streamed response: type and data."""
    async with client.http.post(
        "/v1/responses", json={"input": "a", "temperature": 0, "stream": True, **body}
    ) as answer:
        frames = (await answer.text()).split("\n\n")
    assert frames.pop() == ""
    found = []
    for frame in frames:
        kind, data = frame.split("\n")
        document = json.loads(data.removeprefix("data: "))
        assert document["type"] == kind.removeprefix("event: ")
        found.append((document["type"], document))
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    return found


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    output = [
        {name: value for name, value in item.items() if name not in ("id", "call_id")} for item in response["output"]
    ]
    return response | {"id": None, "created_at": None, "output": output}


async def test_a_stream_ends_with_the_response_that_a_whole_answer_is() -> None:
    async with client_of(language_model(script_core(HELLO, len(PROMPT)))) as client:
        whole = await respond(client, max_output_tokens=40)
        told = await events(client, max_output_tokens=40)
    assert whole["status"] == "completed"
    assert whole["output"][0]["content"][0]["text"] == HELLO.decode()
    assert whole["usage"]["input_tokens"] == len(PROMPT)
    whole["usage"]["input_tokens_details"]["cached_tokens"] = told[-1][1]["response"]["usage"]["input_tokens_details"][
        "cached_tokens"
    ]
    assert without_ids(told[-1][1]["response"]) == without_ids(whole)
    kinds = [kind for kind, _ in told]
    deltas = [data["delta"] for kind, data in told if kind == "response.output_text.delta"]
    assert "".join(deltas) == HELLO.decode()
    assert [kind for kind in kinds if kind != "response.output_text.delta"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_an_answer_that_is_cut_off_says_why() -> None:
    async with client_of(language_model(script_core(HELLO, len(PROMPT)))) as client:
        whole = await respond(client, max_output_tokens=3)
        told = await events(client, max_output_tokens=3)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert whole["output"][0]["status"] == "incomplete"
    assert told[-1][0] == "response.incomplete"


async def test_a_call_is_an_item_of_its_own() -> None:
    said = b'Sure.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    async with client_of(language_model(script_core(said, 1), chat_template="{{ tools and '' }}a")) as client:
        told = await events(client, tools=[TOOL])
        whole = await respond(client, tools=[TOOL])
    text, call = whole["output"]
    assert text["content"][0]["text"] == "Sure."
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "f", '{"a": 1}')
    pieces = [data["delta"] for kind, data in told if kind == "response.function_call_arguments.delta"]
    assert "".join(pieces) == '{"a": 1}'


async def test_log_probabilities_come_where_included(client: Client) -> None:
    include = ["message.output_text.logprobs"]
    body = {"include": include, "top_logprobs": 2, "max_output_tokens": 4, "ignore_eos": True, "temperature": 0}
    answer = await respond(client, **body)
    logprobs = answer["output"][0]["content"][0]["logprobs"]
    assert logprobs
    assert all(len(item["top_logprobs"]) == 2 for item in logprobs)
    told = await events(client, **body)
    again = told[-1][1]["response"]["output"][0]["content"][0]["logprobs"]
    assert [item["token"] for item in again] == [item["token"] for item in logprobs]


async def test_a_response_can_be_shown_gone_on_from_and_deleted() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    async with client_of(language_model(chat_template=template)) as client:
        first = await respond(client, input="ab", instructions="i", max_output_tokens=4, ignore_eos=True)
        status, body = await client.get(f"/v1/responses/{first['id']}")
        assert (status, json.loads(body)) == (200, first)
        second = await respond(client, input="c", previous_response_id=first["id"], max_output_tokens=4)
        said = first["output"][0]["content"][0]["text"]
        by_hand = await client.post("/tokenize", prompt=f"ab{said}c", add_special_tokens=False)
        assert second["usage"]["input_tokens"] == by_hand["count"]  # instructions do not carry over
        async with client.http.delete(f"/v1/responses/{first['id']}") as answer:
            assert await answer.json() == {"id": first["id"], "object": "response", "deleted": True}
        error = (await respond(client, 404, previous_response_id=first["id"]))["error"]
        assert error["param"] == "previous_response_id"
        unstored = await respond(client, store=False)
        assert (await client.get(f"/v1/responses/{unstored['id']}"))[0] == 404


async def test_with_truncation_auto_the_oldest_messages_go() -> None:
    items = [{"role": "user", "content": letter * 30} for letter in "abcdef"]
    async with client_of(language_model()) as client:
        error = (await respond(client, 400, input=items))["error"]
        assert error["param"] == "input"
        answer = await respond(client, input=items, truncation="auto", max_output_tokens=10)
    assert answer["usage"]["input_tokens"] == 2 * len("<user>" + "a" * 30 + "\n") + len("<assistant>")


def test_items_become_messages() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": []}]},
        call,
        call | {"call_id": "d"},
        {"type": "function_call_output", "call_id": "c", "output": "3"},
    ]
    user, assistant, tool = messages_of(ResponsesRequest.model_validate({"input": items}))
    assert (user.text, assistant.text, tool.text) == ("one", "x", "3")
    assert [call.id for call in assistant.tool_calls] == ["c", "d"]
    assert tool.tool_call_id == "c"


def test_the_store_forgets_the_oldest_where_room_is_short() -> None:
    store = ResponseStore(max_items=2)
    for name in "abc":
        store.put({"id": name}, [Message(role="user", content=name)])
    assert store.get("c").messages[0].text == "c"
    with pytest.raises(ApiError, match="no response a"):
        store.get("a")
    small = ResponseStore(max_bytes=1000)
    small.put({"id": "a"}, [Message(role="user", content="x" * 2000)])
    with pytest.raises(ApiError):
        small.get("a")


BAD: list[tuple[dict[str, object], str, str]] = [
    ({"input": None}, "input", "required"),
    ({"input": []}, "input", "at least 1"),
    ({"input": [{"type": "reasoning"}]}, "input.0", "function_call_output"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type", "input_text"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "3"}]}, "input.0", "before it"),
    ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
    ({"max_output_tokens": 1000}, "max_output_tokens", "at most"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "missing"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type", "function"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "only f"),
    ({"tools": [TOOL], "text": {"format": {"type": "json_object"}}}, "text.format", "exclude"),
    ({"include": ["reasoning.encrypted_content"]}, "include.0", "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs", "include"),
    ({"include": ["message.output_text.logprobs"], "tools": [TOOL]}, "include", "beside tools"),
    ({"stream_options": {}}, "stream_options", "stream"),
    ({"background": True}, "background", "stream"),
    ({"max_tokens": 3}, "max_tokens", "max_output_tokens"),
    ({"temperature": 1000}, "temperature", "between 0"),
]


async def test_a_bad_request_is_told_in_the_words_of_this_path(client: Client) -> None:
    for body, param, words in BAD:
        error = (await respond(client, 400, **body))["error"]
        assert error["param"].startswith(param), body
        assert words in error["message"], body


async def test_what_is_not_supported_is_refused_by_name(client: Client) -> None:
    for field, why in UNSUPPORTED_RESPONSES.items():
        if field in ResponsesRequest.model_fields:
            continue
        error = (await respond(client, 400, **{field: 7}))["error"]
        assert (error["message"], error["param"]) == (why, field)

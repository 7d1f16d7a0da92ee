"""Calls are read out of text the same way however it is cut, and forced calls are bound to a valid schema."""

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.server.chat import ChatTemplate, conversation
from kubeformer_runtime.server.protocol import ChatRequest, Message
from kubeformer_runtime.server.tools import Call, CallReader, Toolbox, toolbox_of
from kubeformer_runtime.server.tools import Message as Said
from tests.unit.engine.builders import CHAT_TEMPLATE

NAMES = frozenset({"f", "g"})
PIECES = [
    "Sure. ",
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", "arguments": {"a": "}<"}}',
    '{"name": "h", "argum',
    "\n",
    "<",
]


def read(pieces: Sequence[str], **options: bool) -> Said:
    """What a reader makes of a text in pieces."""
    numbers = itertools.count()
    reader, said = CallReader(NAMES, lambda: f"call_{next(numbers)}", **options), Said()  # type: ignore[arg-type]
    for piece in pieces:
        said.take(reader.push(piece))
    said.take(reader.push("", last=True))
    return said


CASES = {
    "plain text": ("Hello <world", "Hello <world", []),
    "a call in tags": ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [("f", '{"a": 1}')]),
    "text, then two calls": (
        'Sure.\n<tool_call>{"name":"f","arguments":{}}</tool_call>\n<tool_call>{"name":"g","arguments":{"x":[{}]}}</tool_call>',
        "Sure.",
        [("f", "{}"), ("g", '{"x":[{}]}')],
    ),
    "bare JSON": ('{"name": "g", "parameters": {"a": "{"}}', "", [("g", '{"a": "{"}')]),
    "a list of calls": ('[{"name":"f","arguments":{}}, {"name":"g","arguments":{}}]', "", [("f", "{}"), ("g", "{}")]),
    "JSON that is no call": ('{"answer": [1, 2]}', '{"answer": [1, 2]}', []),
    "an unknown function": ('{"name": "h", "arguments": {}}', '{"name": "h", "arguments": {}}', []),
    "rubbish in tags": ("<tool_call>no</tool_call>", "<tool_call>no</tool_call>", []),
    "cut off in the arguments": ('<tool_call>{"name": "f", "arguments": {"a": "b', "", [("f", '{"a": "b')]),
    "cut off in the name": ('<tool_call>{"name": "f', '<tool_call>{"name": "f', []),
}


@pytest.mark.parametrize("case", CASES)
def test_calls_are_read_out_of_text(case: str) -> None:
    text, content, calls = CASES[case]
    for size in (1, 3, len(text)):
        said = read([text[place : place + size] for place in range(0, len(text), size)])
        assert said.content == content
        assert said.calls == [Call(f"call_{place}", *call) for place, call in enumerate(calls)]


@settings(max_examples=50)
@given(st.lists(st.sampled_from(PIECES), max_size=8), st.lists(st.integers(0, 200), max_size=12))
def test_it_does_not_matter_where_a_text_is_cut(pieces: list[str], cuts: list[int]) -> None:
    text = "".join(pieces)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert read([text[begin:end] for begin, end in itertools.pairwise(places)]) == read([text])


@given(st.text(alphabet="<tool_cal>{[ab \n", max_size=40))
def test_text_without_a_call_comes_out_unchanged(text: str) -> None:
    assert read([text]) == Said(text)


def test_without_parallel_calls_nothing_after_the_first_counts() -> None:
    text, _, _ = CASES["text, then two calls"]
    assert read([text], parallel=False) == Said("Sure.", [Call("call_0", "f", "{}")])


def toolbox(**changes: object) -> Toolbox:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}, "kind": {"$ref": "#/$defs/kind"}}}
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": tree | {"$defs": {"kind": {"enum": ["a"]}}}}},
        {"type": "function", "function": {"name": "g"}},
    ]
    messages = [{"role": "user", "content": "a"}]
    found = toolbox_of(ChatRequest.model_validate({"messages": messages, "tools": tools, **changes}))
    assert found is not None
    return found


def test_a_named_function_is_bound_to_its_own_schema_and_auto_to_none() -> None:
    named = toolbox(tool_choice={"type": "function", "function": {"name": "g"}})
    assert named.schema == {"type": "object", "properties": {}, "additionalProperties": False}
    assert toolbox().schema is None


def test_a_required_call_may_be_of_any_function_and_references_still_hold() -> None:
    schema = toolbox(tool_choice="required", parallel_tool_calls=False).schema
    assert schema is not None
    names = [item["properties"]["name"]["const"] for item in schema["items"]["anyOf"]]
    assert (names, schema["minItems"], schema["maxItems"]) == (["f", "g"], 1, 1)
    first = schema["$defs"]["0"]
    assert first["properties"] == {"next": {"$ref": "#/$defs/0"}, "kind": {"$ref": "#/$defs/0/$defs/kind"}}
    assert first["$defs"]["kind"] == {"enum": ["a"]}


def test_tools_of_none_are_not_shown_to_the_model() -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "tool_choice": "none"}
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert toolbox_of(ChatRequest.model_validate({**body, "tools": tools})) is None


TALK = [
    Message(role="developer", content="Be kind."),
    Message(role="user", content="Sum?"),
    Message.model_validate(
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        }
    ),
    Message(role="tool", content="3", tool_call_id="c"),
]


def test_a_template_without_tools_gets_them_in_the_system_message_and_calls_as_text() -> None:
    template = ChatTemplate(CHAT_TEMPLATE, {})
    system, _, call, result = conversation(TALK, toolbox().functions, template)
    assert system["role"] == "system"
    assert system["content"].startswith("Be kind.\n\n")
    assert '\n{"name": "g"}\n</tools>' in system["content"]
    assert call["content"] == '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert (result["role"], result["content"]) == ("user", "<tool_response>\n3\n</tool_response>")
    assert read([call["content"]]).calls == [Call("call_0", "f", '{"a": 1}')]


def test_a_template_with_tools_gets_them_as_transformers_would_give_them() -> None:
    source = "{% for t in tools %}{{ t.function.name }} {% endfor %}{% for m in messages %}{{ m.role }}"
    template = ChatTemplate(
        source + "{% for c in m.tool_calls %}{{ c.function.arguments.a }}{% endfor %}{% endfor %}", {}
    )
    assert template.takes_tools
    messages = conversation(TALK, toolbox().functions, template)
    assert template.render(messages, add_generation_prompt=False) == "systemuserassistant1tool"
    assert json.dumps(messages[0]) == '{"role": "system", "content": "Be kind."}'


def test_with_a_strict_function_only_tagged_calls_count_and_a_grammar_binds_them() -> None:
    """Whether the grammar holds is tried in test_openai_client.py, where llguidance runs anyway."""
    strict = [{"type": "function", "function": {"name": "f", "strict": True}}]
    found = toolbox(tools=strict)
    assert found.grammar is not None
    assert toolbox().grammar is toolbox(tools=strict, tool_choice="required").grammar is None
    reader, said = found.reader(lambda: "c"), Said()
    said.take(reader.push('{"name": "f", "arguments": {}}', last=True))
    assert said == Said('{"name": "f", "arguments": {}}')

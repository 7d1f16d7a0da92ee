"""Chat templates render as transformers renders them."""

import datetime

import pytest
from transformers import PreTrainedTokenizerFast

from kubeformer_runtime.server.chat import ChatTemplate, as_tools, conversation
from kubeformer_runtime.server.errors import ApiError
from kubeformer_runtime.server.protocol import Function, Message
from tests.unit.engine.builders import byte_tokenizer

MESSAGES = [
    {"role": "system", "content": 'Be <kind> & "short".'},
    {"role": "user", "content": "Hi\nthere"},
    {"role": "assistant", "content": "Héllo"},
    {"role": "user", "content": "Bye"},
]
TEMPLATES = {
    "ChatML": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
        " + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "blocks on lines of their own": (
        "{{ bos_token }}\n{%- for m in messages %}\n    {% if m.role == 'system' %}\n[{{ m.content | trim }}]\n"
        "    {% else %}\n{{ m.content }}{{ eos_token }}\n    {% endif %}\n{% endfor %}"
    ),
    "JSON of a message": "{% for m in messages %}{{ m | tojson }}\n{{ m | tojson(indent=2) }}{% endfor %}",
    "a loop that stops": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m }}{% endfor %}",
    "variables": "{{ mood | default('none') }}{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add", [True, False])
def test_a_template_renders_as_in_transformers(name: str, add: bool) -> None:
    reference = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().tokenizer, bos_token="<bos>", eos_token="<eos>", chat_template=TEMPLATES[name]
    )
    expected = reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=add, mood="kind")
    ours = ChatTemplate(TEMPLATES[name], {"bos_token": "<bos>", "eos_token": "<eos>"})
    assert ours.render(MESSAGES, add_generation_prompt=add, variables={"mood": "kind"}) == expected


def test_a_continued_message_is_left_open_as_in_transformers() -> None:
    messages = MESSAGES[:3]
    reference = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().tokenizer, chat_template=TEMPLATES["ChatML"])
    expected = reference.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    ours = ChatTemplate(TEMPLATES["ChatML"], {})
    assert ours.render(messages, add_generation_prompt=False, continue_final_message=True) == expected


def test_the_date_is_the_clocks() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {}, lambda: datetime.datetime(2024, 5, 6))
    assert template.render(MESSAGES) == "2024-05-06"


def test_continuing_a_message_that_the_template_hides_is_refused() -> None:
    with pytest.raises(ApiError, match="continue_final_message"):
        ChatTemplate("nothing", {}).render(MESSAGES, add_generation_prompt=False, continue_final_message=True)


TOOLS_TEMPLATE = (
    "{%- if tools %}<tools>{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}</tools>\n{% endif %}"
    "{% for m in messages %}{{ '<' + m.role + '>' + (m.content or '') }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "</tool_call>{% endfor %}\n{% endfor %}"
)


def test_tools_and_calls_render_as_in_transformers() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    messages = [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"x": 1}}}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "c"},
    ]
    reference = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().tokenizer, chat_template=TOOLS_TEMPLATE)
    expected = reference.apply_chat_template(messages, tools=[tool], tokenize=False)
    ours, functions = ChatTemplate(TOOLS_TEMPLATE, {}), [Function.model_validate(tool["function"])]
    call = {"id": "c", "function": {"name": "f", "arguments": '{"x": 1}'}}
    sent = [Message.model_validate(messages[0]), Message(role="assistant", tool_calls=[call]), Message(**messages[2])]
    variables = {"tools": as_tools(functions)}
    assert (
        ours.render(conversation(sent, functions, ours), add_generation_prompt=False, variables=variables) == expected
    )


def test_a_variable_that_the_template_does_not_read_is_refused() -> None:
    template = ChatTemplate("{% if mood %}{{ mood }}{% endif %}", {"bos_token": "<bos>"})
    template.check_variables({"mood": "kind"}, ("messages",))
    for name in ("enable_thinking", "bos_token", "messages"):
        with pytest.raises(ApiError, match=f"chat_template_kwargs.{name}"):
            template.check_variables({name: 1}, ("messages",))

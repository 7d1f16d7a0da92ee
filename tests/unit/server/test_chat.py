"""Chat templates render as transformers renders them."""

import datetime

import pytest
from transformers import PreTrainedTokenizerFast

from kubeformer_runtime.server.chat import ChatTemplate
from kubeformer_runtime.server.errors import ApiError
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

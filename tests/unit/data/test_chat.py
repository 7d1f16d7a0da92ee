"""Conversations: what the assistant says is found exactly, and what cannot be learned from is named."""

from pathlib import Path
from typing import Any

import pytest

from kubeformer.contract.job import Chat
from kubeformer.contract.names import Reason
from kubeformer_runtime.chat_template import CHATML, Template, TemplateRefused
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepare import prepare_here
from kubeformer_runtime.data.prepared import IGNORE
from kubeformer_runtime.data.recipes.chat import said_tokens
from kubeformer_runtime.data.recipes.packed import PackedSplit
from tests.unit.data.builders import location, no_beat, settings, write_jsonl

MARKED = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def talk(*said: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]


def talks(count: int) -> list[dict[str, Any]]:
    """Rows."""
    return [
        {"messages": talk(f"what is {n} and {n}?", f"it is {n + n}.", "sure?", f"yes, {n + n}")} for n in range(count)
    ]


def parts(text: str, spans: list[tuple[int, int]]) -> list[str]:
    return [text[begin:end] for begin, end in spans]


def test_an_answer_is_what_is_added_to_the_prompt_for_it() -> None:
    text, spans = Template(CHATML, {}).with_answers(talk("hi", "hello", "bye", "so long"))
    assert parts(text, spans) == ["hello<|im_end|>\n", "so long<|im_end|>\n"]


def test_where_the_template_marks_answers_the_marks_are_taken() -> None:
    text, spans = Template(MARKED, {}).with_answers(talk("<assistant>x", "x", "\ue000", "\ue001y"))
    assert text == "<user><assistant>x<assistant>x<user>\ue000<assistant>\ue001y"
    assert parts(text, spans) == ["x", "\ue001y"]
    assert Template(MARKED, {}).render(talk("a", "b"), add_generation_prompt=False) == "<user>a<assistant>b"


def test_a_template_that_forgets_earlier_turns_has_to_mark_answers() -> None:
    forgetful = "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(TemplateRefused, match=r"put \{% generation %\}"):
        Template(forgetful, {}).with_answers(talk("a", "b", "c", "d"))


def test_a_token_is_said_where_one_of_its_characters_is() -> None:
    assert said_tokens([(0, 2), (2, 4), (3, 4), (4, 4), (4, 6)], [(3, 5)]) == [False, True, True, True, True]
    assert said_tokens([(0, 1), (1, 2), (2, 3)], [(1, 2)]) == [False, True, False]


def test_from_scratch_the_tokenizer_gets_a_template_and_the_end_of_an_answer_is_learned(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "talk.jsonl", talks(20))
    prepared = prepare_here(settings(tmp_path, source, task=Chat(sequence_length=256)), no_beat)
    tokenizer, split = prepared.text_tokenizer, prepared.train
    assert tokenizer.files["chat_template.jinja"].decode() == CHATML
    assert prepared.facts == {"ends": [tokenizer.token_id("<|im_end|>")]} == {"ends": [tokenizer.eos_id]}
    assert isinstance(split, PackedSplit)
    first = split.targets_RS[0][(split.documents_RS[0] == 0) & (split.targets_RS[0] != IGNORE)]
    said = "".join(tokenizer.decode([token]) or "|" for token in first)
    assert said.startswith("it is ")
    assert said.count("|") == 2  # both answers end, and nothing behind their ends is learned
    assert said.endswith("|")


def test_a_long_conversation_is_cut_and_one_without_an_answer_left_is_left_out(tmp_path: Path) -> None:
    rows = [*talks(20), {"messages": talk("long question " * 60, "no")}, {"messages": talk("short", "answer " * 90)}]
    source = write_jsonl(tmp_path / "talk.jsonl", rows)
    validation = write_jsonl(tmp_path / "more.jsonl", talks(30)[20:])
    job = settings(tmp_path, source, task=Chat(sequence_length=64), validation=validation, deduplicate="None")
    report = prepare_here(job, no_beat).report
    assert report.warnings[0].startswith("data: 2 of 22 conversations are longer than task.chat.sequenceLength (64")
    assert "1 have no answer left and are left out" in report.warnings[0]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ("hello", "holds a text, not a list of messages"),
        ([], "is empty"),
        (["hello"], "message 1 is a text, not an object with role and content"),
        ([{"role": "bot", "content": "x"}], "message 1 has the role 'bot'; known are system, user, assistant, tool"),
        ([{"role": "user", "content": 3}], "message 1 has a number as content, not a text"),
        (talk("a", " "), "message 2 has no content"),
        (talk("a"), "has no message of the role assistant"),
    ],
)
def test_rows_that_are_no_conversation_say_why(tmp_path: Path, messages: object, why: str) -> None:
    source = write_jsonl(tmp_path / "talk.jsonl", [{"messages": messages}])
    with pytest.raises(DataError, match="1 of 1 rows") as error:
        prepare_here(settings(tmp_path, source, task=Chat()), no_beat)
    assert why in error.value.message


def test_rows_all_too_long_name_the_setting(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "talk.jsonl", talks(10))
    with pytest.raises(DataError, match=r"task.chat.sequenceLength \(4 tokens\) none of 9 conversations") as error:
        prepare_here(settings(tmp_path, source, task=Chat(sequence_length=4)), no_beat)
    assert error.value.reason == Reason.DATA_INVALID


def test_a_role_that_only_validation_has_is_named(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "talk.jsonl", talks(10))
    system = [{"messages": [{"role": "system", "content": "be kind"}, *talk("a", "b")]}]
    validation = write_jsonl(tmp_path / "more.jsonl", system)
    with pytest.raises(DataError, match=r"data.validation: the role 'system' is in no conversation that is trained on"):
        prepare_here(settings(tmp_path, source, task=Chat(), validation=validation), no_beat)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no jokes') }}", "refuses 9 of 9 conversations.*no jokes.*task.chat.template"),
        ("{% for %}", "cannot be compiled.*task.chat.template"),
    ],
)
def test_a_template_that_fails_is_named(tmp_path: Path, template: str, says: str) -> None:
    source = write_jsonl(tmp_path / "talk.jsonl", talks(10))
    (tmp_path / "own.jinja").write_text(template)
    task = Chat(template=location(tmp_path / "own.jinja"))
    with pytest.raises(DataError, match=says):
        prepare_here(settings(tmp_path, source, task=task), no_beat)

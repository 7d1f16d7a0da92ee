"""Forms of answers with SmolLM2: whatever is sampled at temperature 1 is valid, and bombs hurt nobody else."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from examples import smollm2
from kubeformer.contract.base import Location
from kubeformer_runtime.engine.core import Delta, EngineCore, Request
from kubeformer_runtime.engine.grammar_probe import GrammarProbe, ProbeError
from kubeformer_runtime.engine.loading import LanguageModel, load_engine
from kubeformer_runtime.engine.sampling_params import SamplingParams, StructuredOutput
from kubeformer_runtime.engine.sequence import FinishReason
from kubeformer_runtime.engine.structured import StructureCompiler, grammar_of
from tests.unit.engine.builders import EOS, VOCABULARY, byte_tokenizer
from tests.unit.server.builders import client_of, language_model, server_settings

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 2},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}


def is_person(text: str) -> bool:
    person = json.loads(text)
    return (
        set(person) == {"name", "age", "pets"}
        and isinstance(person["name"], str)
        and len(person["name"]) <= 8
        and type(person["age"]) is int
        and 0 <= person["age"] <= 80
        and len(person["pets"]) <= 2
        and set(person["pets"]) <= {"cat", "dog"}
    )


FORMS: list[tuple[StructuredOutput, Callable[[str], object]]] = [
    (StructuredOutput.of_schema(PERSON), is_person),
    (StructuredOutput("regex", "[0-9]{3}-[a-f]{2}"), lambda text: re.fullmatch("[0-9]{3}-[a-f]{2}", text)),
    (StructuredOutput("choice", ("Paris", "Rome", "Zürich")), lambda text: text in ("Paris", "Rome", "Zürich")),
    (
        StructuredOutput("grammar", 'start: N " + " N\nN: /[1-9][0-9]?/'),
        lambda text: sum(map(int, text.split(" + "))) > 1,
    ),
]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """SmolLM2, warm."""
    location = Location(uri="pvc://models/smollm2", path=str(smollm2.ensure()))
    found = load_engine(server_settings(model=location, max_model_length=256, kv_cache_megabytes=64))
    assert isinstance(found, LanguageModel)
    return found


@pytest.fixture(scope="module")
def compiler(model: LanguageModel) -> Iterator[StructureCompiler]:
    found = StructureCompiler(model.tokenizer, model.core.end_tokens, model.vocab_size, seconds=60)
    yield found
    found.close()


def ask(
    model: LanguageModel,
    compiler: StructureCompiler,
    name: str,
    prompt: str,
    form: StructuredOutput | None,
    **params: Any,
) -> Request:
    tokens = model.tokenizer.encode(prompt, add_special_tokens=False)
    sampling = SamplingParams(structured=form, **params)
    return Request(name, tokens, sampling, seed=3, structure=None if form is None else compiler.compile_now(form))


def answers(core: EngineCore, *requests: Request) -> dict[tuple[str, int], tuple[str, Delta]]:
    """The text of each choice and its last delta; the requests run together."""
    for item in requests:
        core.check(item)
        core.add(item)
    found: dict[tuple[str, int], tuple[str, Delta]] = {}
    while core.has_work:
        for delta in core.step().deltas:
            before, _ = found.get((delta.request_id, delta.index), ("", delta))
            found[delta.request_id, delta.index] = (before + delta.text, delta)
    return found


def test_whatever_is_sampled_is_valid_and_neighbours_without_a_form_notice_nothing(
    model: LanguageModel, compiler: StructureCompiler
) -> None:
    free = ask(model, compiler, "free", "The capital of France is", None, temperature=1.0, max_tokens=12)
    alone = answers(model.core, free)["free", 0][0]
    bound = [
        ask(model, compiler, form.kind, "Tell me something about Anna:", form, temperature=1.0, max_tokens=64, n=2)
        for form, _ in FORMS
    ]
    found = answers(model.core, free, *bound)
    assert found["free", 0][0] == alone
    for form, valid in FORMS:
        finished = [
            text
            for (name, _), (text, last) in found.items()
            if name == form.kind and last.finish_reason is FinishReason.STOP
        ]
        assert finished or form.kind == "json"  # one that is fond of whitespace may run into max_tokens
        for text in finished:
            assert valid(text), text


def test_a_stop_string_ends_an_answer_inside_its_form(model: LanguageModel, compiler: StructureCompiler) -> None:
    form = StructuredOutput("regex", "ab(cd)+ef")
    text, last = answers(model.core, ask(model, compiler, "r", "x", form, stop=("d",), max_tokens=20))["r", 0]
    assert (text, last.stop_reason) == ("abc", "d")


# The first needs minutes, the second the whole stack.
BOMBS: dict[str, StructuredOutput] = {
    "time": StructuredOutput.of_schema(
        {"type": "object", "properties": {f"p{place}": {"type": "string"} for place in range(3000)}}
    ),
    "stack": StructuredOutput(
        "grammar", "start: r0\n" + "\n".join(f'r{n}: r{n + 1} "a"' for n in range(6000)) + '\nr6000: "b"'
    ),
}


@pytest.mark.parametrize(("bomb", "words"), [("time", "more than 0.5 s"), ("stack", "too deeply nested")])
def test_a_bomb_ends_the_checking_process_and_not_ours(bomb: str, words: str) -> None:
    probe = GrammarProbe(byte_tokenizer().tokenizer.to_str(), VOCABULARY, [EOS])
    try:
        with pytest.raises(ProbeError, match=words):
            probe.check(grammar_of(BOMBS[bomb]), 0.5 if bomb == "time" else 60)
        assert probe.check(grammar_of(StructuredOutput("regex", "a+")), 60) == ""  # in a new process
        assert "unclosed" in probe.check(grammar_of(StructuredOutput("regex", "(a")), 60)
    finally:
        probe.close()


async def test_a_bomb_is_a_400_and_others_are_answered_meanwhile() -> None:
    async with client_of(language_model()) as client:
        client.serving.need_generator().structures.seconds = 3.0
        schema = json.loads(str(BOMBS["time"].value))
        bomb = asyncio.create_task(client.complete(400, prompt="ab", structured_outputs={"json": schema}))
        answered = 0
        while not bomb.done():
            await client.complete(prompt="ab", max_tokens=2)
            answered += 1
        error = (await bomb)["error"]
        assert error["param"] == "structured_outputs.json"
        assert error["message"].startswith("The form of the answer")  # too slow or, on a quick machine, too large
        assert answered > 1

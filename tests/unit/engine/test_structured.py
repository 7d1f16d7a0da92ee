"""Forms of answers: what is compiled, what is refused and why, and that a sequence follows its form token by token."""

import json
import math
import random
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from kubeformer_runtime.engine.sampler import SamplerState
from kubeformer_runtime.engine.sampling_params import ParameterError, SamplingParams, StructuredOutput
from kubeformer_runtime.engine.structured import (
    MAX_CHOICES,
    MAX_TEXT,
    CompiledStructure,
    StructureCompiler,
    StructureState,
    grammar_of,
)
from tests.unit.engine.builders import EOS, VOCABULARY, byte_tokenizer

CPU = torch.device("cpu")


class NoProbe:
    """Stands for the checking process, which has tests of its own (tests/engine/test_structured.py)."""

    def check(self, grammar: str, seconds: float) -> str:
        return ""

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def compiler() -> StructureCompiler:
    return StructureCompiler(byte_tokenizer(), [EOS], VOCABULARY, probe=lambda *_: NoProbe())


def tokens_of(state: StructureState) -> set[int]:
    return set(state.allowed_V(VOCABULARY, CPU).nonzero()[:, 0].tolist())


def write(structure: CompiledStructure, seed: int) -> str:
    """An answer of tokens chosen at random among those that may come, quotes and brackets preferred."""
    chance, state, answer = random.Random(seed), structure.start(), bytearray()
    for _ in range(400):
        allowed = sorted(tokens_of(state))
        closing = [token for token in allowed if token == EOS or token in b'"]}']
        token = chance.choice(closing if closing and chance.random() < 0.4 else allowed)
        state.accept(token)
        if token == EOS:
            return answer.decode()
        answer.append(token)
    raise AssertionError(f"no end after {bytes(answer)!r}")


def test_a_choice_is_followed_letter_by_letter_and_then_only_the_end_may_come(compiler: StructureCompiler) -> None:
    state = compiler.compile_now(StructuredOutput("choice", ("yes", "yet", "nö"))).start()
    assert tokens_of(state) == {ord("y"), ord("n")}
    for letter in b"ye":
        state.accept(letter)
    assert tokens_of(state) == {ord("s"), ord("t")}
    state.accept(ord("t"))
    assert tokens_of(state) == {EOS}
    state.accept(EOS)
    assert tokens_of(state) == {EOS}


def test_sequences_of_one_form_do_not_disturb_each_other(compiler: StructureCompiler) -> None:
    structure = compiler.compile_now(StructuredOutput("regex", "ab|cd"))
    first, second = structure.start(), structure.start()
    first.accept(ord("a"))
    assert tokens_of(first) == {ord("b")}
    assert tokens_of(second) == {ord("a"), ord("c")}


@pytest.mark.parametrize(
    ("form", "valid"),
    [
        (StructuredOutput("regex", "[0-9]{2}(x|yz)?"), lambda text: len(text) in (2, 3, 4) and text[:2].isdecimal()),
        (StructuredOutput("grammar", 'start: "(" start ")" | "a"'), lambda text: text.count("(") == text.count(")")),
        (StructuredOutput("choice", ('say "hi"\n', "ü")), lambda text: text in ('say "hi"\n', "ü")),
        (StructuredOutput("json_object"), lambda text: isinstance(json.loads(text), dict)),
        (
            StructuredOutput.of_schema({"type": "array", "items": {"enum": [1, "a", None]}, "maxItems": 3}),
            lambda text: all(item in (1, "a", None) for item in json.loads(text)),
        ),
        (StructuredOutput.of_schema('{"type": "boolean"}'), lambda text: json.loads(text) in (True, False)),
    ],
    ids=lambda value: value.kind if isinstance(value, StructuredOutput) else "",
)
def test_whatever_is_chosen_among_the_allowed_tokens_is_valid(
    compiler: StructureCompiler, form: StructuredOutput, valid: Any
) -> None:
    structure = compiler.compile_now(form)
    assert all(valid(write(structure, seed)) for seed in range(5))


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (StructuredOutput("regex", "(a|b"), "unclosed group"),
        (StructuredOutput("regex", r"(a)\1"), "backreferences"),
        (StructuredOutput("regex", " "), "is empty"),
        (StructuredOutput("json", '{"type"'), "no JSON"),
        (StructuredOutput("json", "[1]"), "has to be an object"),
        (StructuredOutput.of_schema({"type": "strin"}), "Invalid type: strin"),
        (StructuredOutput.of_schema({"uniqueItems": True}), "uniqueItems"),
        (StructuredOutput.of_schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
        (StructuredOutput.of_schema({"$ref": "http://example.com/schema.json"}), "does not fetch"),
        (StructuredOutput("json", '{"items":' * 500 + "{}" + "}" * 500), "recursion limit"),
        (StructuredOutput("grammar", "start: nobody"), "nobody"),
        (StructuredOutput("choice", ("a", "")), "empty choice"),
        (StructuredOutput("choice", ("a",) * (MAX_CHOICES + 1)), "choices"),
        (StructuredOutput("regex", "a" * (MAX_TEXT + 1)), "KiB"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(
    compiler: StructureCompiler, form: StructuredOutput, words: str
) -> None:
    with pytest.raises(ParameterError, match=words) as caught:
        compiler.compile_now(form)
    assert caught.value.field == "structured"
    assert "<state>" not in str(caught.value)


def test_equal_forms_are_compiled_once(compiler: StructureCompiler) -> None:
    form = StructuredOutput("regex", "once")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(compiler.compile_now, [form, StructuredOutput("regex", "once")])
    assert compiler.compile_now(form) in (first, second)
    assert compiler.compile_now(form) is compiler.compile_now(form)


def test_a_model_without_an_end_token_cannot_be_bound() -> None:
    ends: Collection[int] = ()
    with pytest.raises(ParameterError, match="end-of-sequence"):
        StructureCompiler(byte_tokenizer(), ends, VOCABULARY).compile_now(StructuredOutput("regex", "a"))


def allowed_after(compiler: StructureCompiler, regex: str, text: bytes, **params: object) -> set[int]:
    state = SamplerState(
        SamplingParams(**params),  # type: ignore[arg-type]
        seed=0,
        end_tokens=(EOS,),
        prompt=(),
        structure=compiler.compile_now(StructuredOutput("regex", regex)).start(),
    )
    for token in text:
        state.record(token)
    return {token for token, value in enumerate(state.shape(torch.zeros(VOCABULARY)).tolist()) if value > -math.inf}


def test_other_wishes_choose_among_what_the_form_allows_and_give_way_where_nothing_is_left(
    compiler: StructureCompiler,
) -> None:
    a, b, c = b"abc"
    assert allowed_after(compiler, "(a|b)+", b"a") == {a, b, EOS}
    assert allowed_after(compiler, "(a|b)+", b"a", min_tokens=3, max_tokens=9) == {a, b}
    assert allowed_after(compiler, "ab?", b"ab", min_tokens=3, max_tokens=9) == {EOS}
    assert allowed_after(compiler, "(a|b)+", b"a", ignore_eos=True) == {a, b}
    assert allowed_after(compiler, "ab?", b"ab", ignore_eos=True) == {EOS}
    assert allowed_after(compiler, "a|b", b"", bad_words=((a,), (c,))) == {b}
    assert allowed_after(compiler, "a", b"", bad_words=((a,),)) == {a}
    assert allowed_after(compiler, "a|b", b"", allowed_token_ids=(b, c)) == {b}
    assert allowed_after(compiler, "a", b"", allowed_token_ids=(c,)) == {a}


def test_a_form_is_llguidances_grammar() -> None:
    assert json.loads(grammar_of(StructuredOutput("json_object")))["grammars"][0]["json_schema"]["type"] == "object"

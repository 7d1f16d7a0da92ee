"""Beam search: equal to a plain reference, to trying every answer, and to transformers where both mean the same."""

import itertools
import math
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.engine import beam
from kubeformer_runtime.engine.async_engine import AsyncEngine
from kubeformer_runtime.engine.beam import BeamSearch
from kubeformer_runtime.engine.core import Delta, Request
from kubeformer_runtime.engine.sampler import Logprob
from kubeformer_runtime.engine.sequence import FinishReason
from tests.unit.engine.builders import byte_tokenizer, request, tiny_core, write_model
from tests.unit.server.builders import client_of, language_model

END = 0  # the token that ends an answer of the table


def table(seed: int, size: int) -> list[list[float]]:
    """Log-probabilities of the next token, given the last one."""
    logits = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)) * 2
    rows: list[list[float]] = logits.log_softmax(-1).tolist()
    return rows


def found_by_search(
    rows: list[list[float]], width: int, max_tokens: int, penalty: float
) -> list[tuple[list[int], float]]:
    """What BeamSearch finds where the prompt is three tokens long and ends in token 1."""
    search = BeamSearch(3, width, max_tokens, penalty, {END})
    while not search.finished:
        tops = []
        for item in search.live:
            row = rows[item.path[-1].token if item.path else 1]
            best = sorted(range(len(row)), key=lambda token: -row[token])[: 2 * width]
            tops.append([Logprob(token, row[token]) for token in best])
        search.take(tops)
    return [([item.token for item in found.path], search.score(found)) for found in search.best()]


def plain_search(rows: list[list[float]], width: int, max_tokens: int, penalty: float) -> list[tuple[list[int], float]]:
    """vLLM's loop, written down as it is described, without stopping early."""
    live: list[tuple[list[int], float]] = [([], 0.0)]
    done: list[tuple[list[int], float]] = []
    for _ in range(max_tokens):
        grown = []
        for tokens, total in live:
            row = rows[tokens[-1] if tokens else 1]
            for token in sorted(range(len(row)), key=lambda token: -row[token])[: 2 * width]:
                if token == END:
                    done.append((tokens, total + row[token]))
                else:
                    grown.append(([*tokens, token], total + row[token]))
        live = sorted(grown, key=lambda item: -item[1])[:width]
    scored = [(tokens, total / (3 + len(tokens)) ** penalty) for tokens, total in [*done, *live]]
    return sorted(scored, key=lambda item: -item[1])[:width]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(3, 9),
    width=st.integers(1, 4),
    max_tokens=st.integers(1, 6),
    penalty=st.sampled_from([0.0, 0.6, 1.0, 2.0, -1.0]),
)
def test_the_search_finds_what_the_plain_loop_finds(
    seed: int, size: int, width: int, max_tokens: int, penalty: float
) -> None:
    rows = table(seed, size)
    found, expected = (search(rows, width, max_tokens, penalty) for search in (found_by_search, plain_search))
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_wide_enough_finds_the_best_of_all_answers(penalty: float) -> None:
    rows, max_tokens = table(7, 4), 4
    answers = []
    for length in range(max_tokens + 1):
        for tokens in itertools.product(range(1, 4), repeat=length):
            ended = [] if length == max_tokens else [END]
            path = [1, *tokens, *ended]
            total = math.fsum(rows[before][after] for before, after in itertools.pairwise(path))
            answers.append((list(tokens), total / (3 + length) ** penalty))
    answers.sort(key=lambda item: -item[1])
    found = found_by_search(rows, 81, max_tokens, penalty)
    assert [tokens for tokens, _ in found[:10]] == [tokens for tokens, _ in answers[:10]]


async def run(*requests: Request) -> dict[tuple[str, int], Delta]:
    """The deltas of beam requests over the tiny model; every block is free afterwards."""
    core = tiny_core()
    engine = AsyncEngine(core)
    engine.start()
    found: dict[tuple[str, int], Delta] = {}
    async with aclosing(beam.batches(engine, byte_tokenizer(), requests)) as batches:
        async for batch in batches:
            found |= {(delta.request_id, delta.index): delta for delta in batch}
    await engine.close()
    assert core.stats().kv_cache_usage == 0.0
    return found


async def test_answers_are_those_of_transformers(tmp_path: Path) -> None:
    """With a length penalty of 0 and no end, both take the likeliest continuations by their sum."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(write_model(tmp_path), dtype=torch.float32)
    prompts = [list(b"The quick brown fox"), list(b"jumps over"), [7]]
    asked = [
        request(f"r{number}", prompt, n=3, max_tokens=10, ignore_eos=True, use_beam_search=True, length_penalty=0.0)
        for number, prompt in enumerate(prompts)
    ]
    found = await run(*asked)
    for number, prompt in enumerate(prompts):
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            num_beams=3,
            num_return_sequences=3,
            max_new_tokens=10,
            length_penalty=0.0,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        for index in range(3):
            tokens = [item.token for item in found[f"r{number}", index].tokens]
            assert tokens == expected[index, len(prompt) :].tolist()
            assert found[f"r{number}", index].finish_reason is FinishReason.LENGTH


async def test_several_prompts_and_their_choices_come_back_in_one_answer() -> None:
    async with client_of(language_model()) as client:
        body = {"prompt": ["ab", "ab"], "n": 2, "max_tokens": 6, "use_beam_search": True, "ignore_eos": True}
        document = await client.complete(**body, logprobs=2, return_token_ids=True)
        texts = [choice["text"] for choice in document["choices"]]
        assert texts[:2] == texts[2:]
        assert document["choices"][0]["token_ids"] != document["choices"][1]["token_ids"]
        totals = [math.fsum(choice["logprobs"]["token_logprobs"]) for choice in document["choices"]]
        assert totals[0] >= totals[1]
        assert document["usage"]["completion_tokens"] == 24
        chunks = await client.stream("/v1/completions", **body)
        assert [
            "".join(part["choices"][0]["text"] for part in chunks if part["choices"][0]["index"] == index)
            for index in range(4)
        ] == texts


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 0.5), ("seed", 1), ("stop", "a"), ("top_k", 3), ("logit_bias", {"5": 1}), ("n", 17)],
)
async def test_what_beam_search_cannot_honour_is_refused_by_name(field: str, value: object) -> None:
    async with client_of(language_model()) as client:
        document = await client.complete(400, prompt="ab", use_beam_search=True, **{field: value})
        assert document["error"]["param"] == field


async def test_a_length_penalty_changes_which_answer_is_best_and_needs_beam_search() -> None:
    async with client_of(language_model()) as client:
        document = await client.complete(400, prompt="ab", length_penalty=2.0)
        assert document["error"]["param"] == "length_penalty"
        bodies = [
            {"prompt": "ab", "n": 4, "max_tokens": 12, "use_beam_search": True, "length_penalty": p} for p in (-9, 9)
        ]
        short, long = [await client.complete(**body) for body in bodies]
        assert short["usage"]["completion_tokens"] < long["usage"]["completion_tokens"]

"""The sampler: the distribution it promises, each filter against its plain definition, and seeds that reproduce."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.engine.largest import argmax, descending, largest, run_peaks
from kubeformer_runtime.engine.sampler import (
    SamplerState,
    draw,
    sample,
    seed_of_choice,
    uniform,
    with_logprobs,
)
from kubeformer_runtime.engine.sampling_params import MAX_BAD_WORDS, ParameterError, SamplingParams

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def state(prompt: tuple[int, ...] = (), seed: int = 0, **params: object) -> SamplerState:
    return SamplerState(SamplingParams(**params), seed, end_tokens=(5,), prompt=prompt)  # type: ignore[arg-type]


def choose(logits: torch.Tensor, params: SamplingParams, number: float) -> int:
    return draw(logits[None], [params], [number])[0]


def allowed(logits: torch.Tensor, params: SamplingParams) -> set[int]:
    """Every token that one of 256 evenly spread random numbers chooses."""
    return set(draw(logits.expand(256, -1), [params] * 256, [number / 256 for number in range(256)]))


def random_logits(size: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def plain_distribution(logits: torch.Tensor, params: SamplingParams) -> list[float]:
    """The definitions, one after the other, without any cleverness: the probability of each token."""
    weight = [
        math.exp(value - float(logits.max() / params.temperature)) for value in (logits / params.temperature).tolist()
    ]
    keep = [token for token in range(len(weight)) if weight[token] >= params.min_p]
    keep.sort(key=lambda token: -weight[token])
    if params.top_k > 0:
        keep = keep[: params.top_k]
    total, mass, kept = math.fsum(weight[token] for token in keep), 0.0, []
    for token in keep:
        if mass >= params.top_p * total:
            break
        kept.append(token)
        mass += weight[token]
    return [weight[token] / mass if token in kept else 0.0 for token in range(len(weight))]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([7, 128, 300]),
    temperature=st.floats(0.3, 2.0),
    top_k=st.sampled_from([-1, 0, 1, 3, 20, 200]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    number=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_the_inverse_of_the_plain_definitions_cumulative_distribution(
    seed: int, size: int, temperature: float, top_k: int, top_p: float, min_p: float, number: float
) -> None:
    logits = random_logits(size, seed, 2.0)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = plain_distribution(logits, params)
    token = choose(logits, params, number)
    assert expected[token] > 0
    before = math.fsum(expected[:token])
    assert before - 1e-4 <= number <= before + expected[token] + 1e-4


@pytest.mark.parametrize("top_p", [0.05, 0.7, 0.95])
def test_a_large_vocabulary_takes_short_ways_to_the_same_tokens(top_p: float) -> None:
    logits = random_logits(5001, 3, 3.0)
    for params in (SamplingParams(top_p=top_p), SamplingParams(top_p=top_p, top_k=40, min_p=0.001)):
        expected = plain_distribution(logits, params)
        found = allowed(logits, params)
        assert all(expected[token] > 0 for token in found)
        assert found >= {token for token, share in enumerate(expected) if share > 1 / 250}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([5, 128, 131, 1000]), st.integers(1, 60))
def test_peaks_of_runs_find_what_a_sort_finds(seed: int, size: int, count: int) -> None:
    rows = torch.stack([random_logits(size, seed), random_logits(size, seed + 1).round()])  # the second has equal ones
    assert argmax(rows) == [row.index(max(row)) for row in rows.tolist()]
    for row, peaks in zip(rows, run_peaks(rows), strict=True):
        count = min(count, size)
        values, places = largest(row, count, peaks)
        assert values.tolist() == sorted(row.tolist(), reverse=True)[:count]
        assert row[places].tolist() == values.tolist()
        assert len(set(places.tolist())) == count
        assert descending(row, 0.25).tolist() == sorted((v for v in row.tolist() if v >= 0.25), reverse=True)


def test_tokens_come_as_often_as_their_probability_says() -> None:
    draws = 20_000
    numbers = [uniform(11, position) for position in range(draws)]
    counts = Counter(draw(LOGITS.expand(draws, -1), [SamplingParams()] * draws, numbers))
    for token, probability in enumerate(LOGITS.softmax(0).tolist()):
        deviation = math.sqrt(draws * probability * (1 - probability))
        assert abs(counts[token] - draws * probability) < 5 * deviation


def test_random_numbers_depend_on_seed_and_position_alone_and_look_uniform() -> None:
    assert uniform(1, 0) == uniform(1, 0)
    assert len({uniform(seed, position) for seed in range(30) for position in range(30)}) == 900
    mean = sum(uniform(5, position) for position in range(10_000)) / 10_000
    assert abs(mean - 0.5) < 0.02


def test_the_first_of_several_choices_is_the_one_that_n_1_gives() -> None:
    assert seed_of_choice(42, 0) == 42
    assert len({seed_of_choice(42, index) for index in range(64)}) == 64


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(6)), st.sampled_from([50, 300]))
def test_a_row_is_sampled_the_same_alone_and_in_any_batch(seed: int, order: list[int], size: int) -> None:
    rows = torch.stack([random_logits(size, seed + row) for row in range(6)])
    wishes: list[dict[str, object]] = [
        {},
        {"top_p": 0.9},
        {"temperature": 0.0},
        {"top_k": 9, "temperature": 0.7},
        {"presence_penalty": 1.0, "logprobs": 2},
        {"min_p": 0.1, "bad_words": ((1,),)},
    ]
    alone = [sample(rows[row : row + 1], [state((1, 2), row, **wishes[row])])[0] for row in range(6)]
    assert sample(rows[order], [state((1, 2), row, **wishes[row]) for row in order]) == [alone[row] for row in order]


def test_temperature_zero_takes_the_likeliest_token() -> None:
    assert sample(LOGITS[None], [state(temperature=0.0)])[0].token == 0


@settings(max_examples=40, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 5), max_size=6),
    output=st.lists(st.integers(0, 5), max_size=6),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    repetition=st.floats(0.5, 2),
    late=st.integers(0, 6),
)
def test_penalties_are_those_of_their_definitions(
    prompt: list[int], output: list[int], presence: float, frequency: float, repetition: float, late: int
) -> None:
    penalised = state(
        tuple(prompt), presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition
    )
    for position, token in enumerate(output):
        if position >= late:  # the state looks at what was there when it is first asked
            penalised.shape(LOGITS)
        penalised.record(token)
    expected = LOGITS.tolist()
    for token in range(6):
        if token in prompt or token in output:
            expected[token] = expected[token] / repetition if expected[token] > 0 else expected[token] * repetition
        expected[token] -= frequency * output.count(token) + presence * (token in output)
    assert penalised.shape(LOGITS).tolist() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=4),
    only=st.none() | st.lists(st.integers(0, 5), min_size=1, max_size=4),
    early=st.integers(0, 6),
    output=st.lists(st.integers(0, 3), max_size=4),
)
def test_what_may_not_come_does_not_come_unless_nothing_else_is_left(
    words: list[list[int]], only: list[int] | None, early: int, output: list[int]
) -> None:
    asked = state(
        bad_words=tuple(map(tuple, words)),
        allowed_token_ids=None if only is None else tuple(only),
        min_tokens=early,
    )
    for token in output:
        asked.record(token)
    left = set(only if only is not None else range(6))
    bad = {word[-1] for word in words if [*output, word[-1]][-len(word) :] == word}
    ends = {5} if len(output) < early else set()
    for rule in (bad, ends):
        left = left - rule or left
    shaped = asked.shape(LOGITS)
    assert {token for token in range(6) if shaped[token] > -math.inf} == left


def test_bias_moves_a_token_to_the_front_and_leaves_the_models_logits_alone() -> None:
    before = LOGITS.clone()
    assert sample(LOGITS[None], [state(temperature=0.0, logit_bias={3: 100.0})])[0].token == 3
    assert torch.equal(LOGITS, before)


def test_the_end_is_kept_away_until_min_tokens_are_there() -> None:
    logits = torch.tensor([[0.0, 0, 0, 0, 0, 9.0]])
    early = state(temperature=0.0, min_tokens=2, max_tokens=9)
    assert [sample(logits, [early])[0].token for _ in range(3)] == [0, 0, 5]


def test_log_probabilities_are_the_models_own_whatever_the_sampling() -> None:
    chosen = sample(LOGITS[None], [state(temperature=0.0, logprobs=2, logit_bias={4: 50.0})])[0]
    expected = LOGITS.log_softmax(0)
    assert chosen.token == 4
    assert chosen.logprob == pytest.approx(float(expected[4]), abs=1e-6)
    assert [top.token for top in chosen.top] == [0, 1]
    assert [top.logprob for top in chosen.top] == pytest.approx(expected[:2].tolist(), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([6, 300]), st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_log_probabilities_and_ranks_are_those_of_a_plain_softmax(seed: int, size: int, wanted: list[int]) -> None:
    rows = torch.stack([random_logits(size, seed + row, 4.0) for row in range(len(wanted))])
    tokens = [(seed + row) % size for row in range(len(wanted))]
    for row, found in enumerate(with_logprobs(rows, tokens, wanted, ranks=True)):
        expected = rows[row].double().log_softmax(0)
        assert found.logprob == pytest.approx(float(expected[tokens[row]]), abs=1e-5)
        assert found.rank == 1 + sum(float(value) > float(expected[tokens[row]]) for value in expected)
        best = sorted(expected.tolist(), reverse=True)[: wanted[row]]
        assert [item.logprob for item in found.top] == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 65),
        ("max_tokens", 0),
        ("min_tokens", 17),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.5),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("stop", ("",)),
        ("stop_token_ids", (6,)),
        ("logprobs", 21),
        ("logit_bias", {6: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: math.nan}),
        ("prompt_logprobs", 21),
        ("bad_words", ((),)),
        ("bad_words", ((1, 6),)),
        ("bad_words", ((1,),) * (MAX_BAD_WORDS + 1)),
        ("allowed_token_ids", ()),
        ("allowed_token_ids", (-1,)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ParameterError, match=field) as caught:
        SamplingParams(**{field: value}).validate(vocab_size=6)  # type: ignore[arg-type]
    assert caught.value.field == field

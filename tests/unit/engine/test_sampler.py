"""The sampler: the distribution it promises, each filter against its plain definition, and seeds that reproduce."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.engine.sampler import SamplerState, choose, sample, seed_of_choice, uniform
from kubeformer_runtime.engine.sampling_params import ParameterError, SamplingParams

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def state(prompt: tuple[int, ...] = (), seed: int = 0, **params: object) -> SamplerState:
    return SamplerState(SamplingParams(**params), seed, end_tokens=(5,), prompt=prompt)  # type: ignore[arg-type]


def allowed(logits: torch.Tensor, params: SamplingParams) -> set[int]:
    """Every token that some random number chooses."""
    return {choose(logits, params, number / 256) for number in range(256)}


def plain_filter(logits: torch.Tensor, params: SamplingParams) -> set[int]:
    """The definitions, one after the other, without any cleverness."""
    logits = (logits / params.temperature).double()
    keep = set(range(len(logits)))
    if params.min_p:
        probability = logits.softmax(0)
        keep = {t for t in keep if probability[t] >= params.min_p * probability.max() * (1 - 1e-6)}
    ordered = sorted(keep, key=lambda t: -float(logits[t]))
    if params.top_k > 0:
        ordered = ordered[: params.top_k]
    weight = [math.exp(float(logits[t])) for t in ordered]
    total, kept, mass = sum(weight), [], 0.0
    for token, share in zip(ordered, weight, strict=True):
        kept.append(token)
        mass += share / total
        if mass >= params.top_p:
            break
    return set(kept)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.3, 2.0),
    top_k=st.integers(0, 8),
    top_p=st.floats(0.1, 1.0),
    min_p=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_filters_keep_the_tokens_of_their_definitions(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = plain_filter(logits, params)
    found = allowed(logits, params)
    probability = (logits / temperature).softmax(0)
    # 256 evenly spread numbers may miss a token that is less likely than one in 256.
    assert found <= expected
    assert all(probability[token] < 1 / 250 for token in expected - found)


def test_large_vocabularies_take_a_short_way_to_the_same_tokens() -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(3))
    few, many = SamplingParams(top_p=0.05), SamplingParams(top_p=0.95)  # within the likeliest 512, and beyond them
    assert allowed(logits, few) <= plain_filter(logits, few)
    assert allowed(logits, many) <= plain_filter(logits, many)


def test_tokens_come_as_often_as_their_probability_says() -> None:
    draws = 20_000
    params = SamplingParams(temperature=1.0)
    counts = Counter(choose(LOGITS, params, uniform(11, position)) for position in range(draws))
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


def test_a_row_is_sampled_the_same_alone_and_in_a_batch() -> None:
    rows = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    batch = sample(rows, [state(seed=row, temperature=1.0, top_p=0.9) for row in range(4)])
    alone = [sample(rows[row : row + 1], [state(seed=row, temperature=1.0, top_p=0.9)])[0] for row in range(4)]
    assert batch == alone


def test_temperature_zero_takes_the_likeliest_token() -> None:
    assert sample(LOGITS[None], [state(temperature=0.0)])[0].token == 0


def test_penalties_are_those_of_their_definitions() -> None:
    penalised = state((1, 1), temperature=0.0, repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    penalised.shape(LOGITS)
    for token in (0, 0, 4):
        penalised.record(token)
    expected = LOGITS.clone()
    expected[0] = 2.0 / 2 - 2 * 0.5 - 0.25
    expected[1] = 1.0 / 2  # in the prompt: repetition alone
    expected[4] = -1.0 * 2 - 0.5 - 0.25
    torch.testing.assert_close(penalised.shape(LOGITS), expected)


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
    assert [(top.token, pytest.approx(top.logprob, abs=1e-6)) for top in chosen.top] == [
        (0, float(expected[0])),
        (1, float(expected[1])),
    ]


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
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ParameterError, match=field) as caught:
        SamplingParams(**{field: value}).validate(vocab_size=6)  # type: ignore[arg-type]
    assert caught.value.field == field

"""Drafts are guesses that cost nothing but time: the answer is, token by token, the one that comes without them."""

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.engine.sampler import Sampled, SamplerState, sample
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.speculation import LONGEST, PAUSE, SHORTEST, Drafter, verify, without_end


def propose(tokens: list[int], most: int) -> list[int]:
    """Drafts of one who was always right so far, and therefore proposes as many as are wanted."""
    drafter = Drafter()
    for _ in range(30):
        drafter.learn(0, 1, 1)
    return drafter.propose(tokens, most)


def test_what_followed_the_longest_known_end_is_guessed_again() -> None:
    tokens = [1, 2, 3, 4, 9, 2, 3, 4, 5, 6, 1, 2, 3, 4]
    assert propose(tokens, 3) == [9, 2, 3], "[1, 2, 3, 4] was followed by 9; [2, 3, 4] by 5, but is shorter"
    assert propose(tokens[1:], 3) == [5, 6, 1]


def test_of_two_equal_places_the_latest_counts() -> None:
    assert propose([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1) == [8]


def test_a_period_goes_on_and_on() -> None:
    assert propose([5, 1, 2, 3, 1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]


def test_without_a_known_end_there_is_no_guess() -> None:
    for tokens in ([1], [1, 1], [1, 2, 1, 2], [1, 2, 3, 4, 5]):
        assert propose(tokens, 4) == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 6))
def test_a_drafter_that_saw_tokens_come_guesses_like_one_that_sees_them_at_once(tokens: list[int], most: int) -> None:
    old = Drafter()
    for stop in range(1, len(tokens) + 1):
        found = old.propose(tokens[:stop], most)
        assert found == Drafter().propose(tokens[:stop], most)
        assert len(found) <= most
        ends = [tuple(tokens[stop - n : stop]) for n in range(SHORTEST, LONGEST + 1) if n <= stop]
        seen = any(tuple(tokens[i : i + len(end)]) == end for end in ends for i in range(stop - len(end)))
        assert bool(found) == seen


def test_a_sequence_whose_drafts_are_refused_gets_fewer_then_none_then_another_chance() -> None:
    drafter, tokens = Drafter(), [1, 2] * 4
    lengths = []
    while drafts := drafter.propose(tokens, 8):
        lengths.append(len(drafts))
        drafter.learn(len(tokens), len(drafts), 0)
    assert lengths == sorted(lengths, reverse=True)
    assert 8 > lengths[0] > lengths[-1]
    tokens += [1, 2] * (PAUSE // 2)
    drafts = drafter.propose(tokens, 8)
    for _ in range(12):
        drafter.learn(len(tokens), len(drafts), len(drafts))
        drafts = drafter.propose(tokens, 8)
    assert len(drafts) == 8, "and with success all of them"


def test_nothing_is_guessed_behind_the_end_of_an_answer() -> None:
    assert without_end([1, 2, 3, 4], frozenset({3, 9})) == [1, 2]
    assert without_end([1, 2], frozenset()) == [1, 2]


# A model whose next token depends on the last one alone.
CHAIN_VV = torch.tensor([[0.0, 1.0, 2.0, 0.5], [1.5, 0.0, 0.2, 1.0], [0.3, 0.3, 0.0, 2.0], [1.0, 0.0, 1.0, 0.0]])


def answer(params: SamplingParams, seed: int, guesses: list[list[int]], length: int) -> list[int]:
    """`length` tokens after token 0; each step tries the next of the guesses."""
    state, tokens, step = SamplerState(params, seed, (), [0]), [0], 0
    while len(tokens) <= length:
        drafts = guesses[step % len(guesses)] if guesses else []
        step += 1
        logit_SV = CHAIN_VV[torch.tensor([tokens[-1], *drafts])]

        def choose(_: list[int], depth: int, logit_SV: torch.Tensor = logit_SV) -> list[Sampled]:
            return sample(logit_SV[depth : depth + 1], [state])

        tokens += [item.token for item in verify([drafts], choose, lambda item: item.token)[0]]
    return tokens[1 : length + 1]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    guesses=st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=4),
    fields=st.sampled_from(
        [
            {"temperature": 0.0},
            {"temperature": 1.0},
            {"temperature": 2.0, "top_k": 3, "min_p": 0.1},
            {"temperature": 1.0, "presence_penalty": 1.5, "repetition_penalty": 1.3},
            {"temperature": 0.0, "frequency_penalty": 1.0, "bad_words": ((2, 3),)},
        ]
    ),
)
def test_whatever_is_guessed_the_answer_is_the_one_that_comes_without_guesses(
    seed: int, guesses: list[list[int]], fields: dict[str, object]
) -> None:
    params = SamplingParams(**fields)  # type: ignore[arg-type]
    assert answer(params, seed, guesses, 6) == answer(params, seed, [], 6)


def test_drafted_tokens_have_the_models_distribution() -> None:
    """Chi-square over 16 pairs of tokens; chance exceeds 37.7 once in a thousand (15 degrees of freedom)."""
    trials, params = 4000, SamplingParams(temperature=1.0)
    states = [SamplerState(params, seed, (), [0]) for seed in range(trials)]
    drafts = [[2]] * trials

    def choose(which: list[int], depth: int) -> list[Sampled]:
        row = torch.tensor([0, 2])[depth]
        return sample(CHAIN_VV[row].expand(len(which), -1).contiguous(), [states[index] for index in which])

    chosen = verify(drafts, choose, lambda item: item.token)
    refused = [index for index, items in enumerate(chosen) if len(items) == 1]
    last = torch.tensor([chosen[index][0].token for index in refused])
    for index, item in zip(refused, sample(CHAIN_VV[last], [states[index] for index in refused]), strict=True):
        chosen[index].append(item)
    counts = Counter(tuple(item.token for item in items) for items in chosen)
    first_V, then_VV = CHAIN_VV[0].softmax(-1), CHAIN_VV.softmax(-1)
    distance = 0.0
    for a in range(4):
        for b in range(4):
            expected = trials * float(first_V[a] * then_VV[a, b])
            distance += (counts[a, b] - expected) ** 2 / expected
    assert distance < 37.7
    assert 0.3 < 1 - len(refused) / trials < 0.7, "some drafts are accepted, some refused"

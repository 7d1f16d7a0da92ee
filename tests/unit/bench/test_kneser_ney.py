"""The n-gram model that pretraining has to beat, in numbers that can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.trainer.kneser_ney import WITHOUT_COUNTS, KneserNey, discounts

A, B, C = 0, 1, 2
TEXT = [A, B, A, B, A, C, A]  # bigrams: AB twice, BA twice, AC once, CA once


def next_token(model: KneserNey, context: list[int]) -> list[float]:
    """The distribution after a context."""
    return [float(model.probabilities([*context, token])[-1]) for token in range(model.vocabulary)]


def test_discounts_come_from_counts_of_counts() -> None:
    counts = np.repeat([1, 2, 3, 4], [8, 4, 2, 1])  # Y = 8 / (8 + 2 * 4) = 1/2
    assert discounts(counts) == pytest.approx((1 - 2 / 2 * 4 / 8, 2 - 3 / 2 * 2 / 4, 3 - 4 / 2 * 1 / 2))


def test_a_text_too_small_for_them_gets_the_usual_discounts() -> None:
    assert discounts(np.array([1, 1, 2, 7])) == WITHOUT_COUNTS


def test_a_token_alone_counts_by_what_stands_before_it_not_by_how_often_it_is_there() -> None:
    # A stands after B and C, B after A, C after A: of 4 places, less 1 for A and 0.5 for the others, half is freed.
    by_hand = [1 / 4 + 0.5 / 3, 0.5 / 4 + 0.5 / 3, 0.5 / 4 + 0.5 / 3]
    assert next_token(KneserNey(TEXT, 3, order=2), []) == pytest.approx(by_hand)


def test_a_bigram_is_its_discounted_count_and_its_share_of_the_lower_order() -> None:
    model = KneserNey(TEXT, 3, order=2)
    a, b, c = next_token(model, [])
    # After A: B twice (less 1), C once (less 0.5); half of 3 is freed.
    assert next_token(model, [A]) == pytest.approx([0.5 * a, 1 / 3 + 0.5 * b, 0.5 / 3 + 0.5 * c])


def test_an_unseen_context_leaves_it_to_the_shorter_one() -> None:
    model = KneserNey(TEXT, 3, order=3)
    assert next_token(model, [C, B]) == pytest.approx(next_token(model, [B]))


def test_bits_are_those_of_all_tokens_but_the_first() -> None:
    model = KneserNey(TEXT, 3, order=2)
    expected = -np.log2(next_token(model, [A])[B]) - np.log2(next_token(model, [B])[A])
    assert model.bits([A, B, A]) == pytest.approx(expected)


@given(st.integers(2, 5), st.lists(st.integers(0, 6), min_size=5, max_size=80), st.lists(st.integers(0, 6), max_size=6))
def test_probabilities_after_any_context_sum_to_one(order: int, text: list[int], context: list[int]) -> None:
    found = next_token(KneserNey(text, 7, order), context)
    assert sum(found) == pytest.approx(1.0)
    assert min(found) > 0


def test_discounts_that_are_estimated_keep_the_sum_at_one() -> None:
    tokens = np.random.default_rng(0).geometric(0.3, 3000) % 12
    model = KneserNey(tokens, 12, order=3)
    assert discounts(np.unique(tokens[:-2] * 144 + tokens[1:-1] * 12 + tokens[2:], return_counts=True)[1]) != (
        WITHOUT_COUNTS
    )
    for begin in range(0, 2000, 100):
        assert sum(next_token(model, tokens[begin : begin + 2].tolist())) == pytest.approx(1.0)


def test_what_does_not_fit_is_refused_with_the_number() -> None:
    with pytest.raises(ValueError, match="63 bits"):
        KneserNey(TEXT, 50_000, order=5)
    with pytest.raises(ValueError, match=r"must be in \[0, 2\)"):
        KneserNey(TEXT, 2, order=2)
    with pytest.raises(ValueError, match="less than one 5-gram"):
        KneserNey([A, B], 3)

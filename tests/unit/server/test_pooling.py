"""From raw vectors to answers: activations, cosines, and how requests spell their inputs."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.server.pooling import cosine, normalised, probabilities
from kubeformer_runtime.server.pooling_protocol import EmbeddingRequest

NUMBERS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(NUMBERS)
def test_classes_that_exclude_each_other_share_one(logits: list[float]) -> None:
    found = probabilities(logits, "single_label")
    assert all(0.0 <= value <= 1.0 for value in found)
    if len(logits) > 1:
        assert sum(found) == pytest.approx(1.0)
        assert found[logits.index(max(logits))] == max(found)


@settings(max_examples=30, deadline=None)
@given(NUMBERS)
def test_labels_of_their_own_are_sigmoids_and_regressions_stay(logits: list[float]) -> None:
    for value, found in zip(logits, probabilities(logits, "multi_label"), strict=True):
        assert found == pytest.approx((1 + math.tanh(value / 2)) / 2)
    assert probabilities(logits, "regression") == logits
    assert probabilities(logits[:1], "single_label") == probabilities(logits[:1], "multi_label")  # a score


@settings(max_examples=30, deadline=None)
@given(NUMBERS, st.floats(0.5, 100))
def test_a_cosine_knows_directions_and_no_lengths(vector: list[float], factor: float) -> None:
    length = math.hypot(*vector)
    expected = 1.0 if length > 1e-6 else 0.0
    if length > 1e-6 or length == 0:
        assert cosine(vector, [value * factor for value in vector]) == pytest.approx(expected, abs=1e-6)
        assert cosine(vector, [-value for value in vector]) == pytest.approx(-expected, abs=1e-6)
        assert math.hypot(*normalised(vector)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("given_input", "items"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_the_four_spellings_of_an_input(given_input: object, items: list[object]) -> None:
    assert EmbeddingRequest.model_validate({"input": given_input}).items == items

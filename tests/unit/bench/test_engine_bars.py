"""What the engine's bench concludes from its figures, and how it sums up what a client saw."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.engine.bars import Bar, ratio_bar
from bench.engine.load import Reply, percentile, summarise

ROWS = {
    "ours": {"tokensPerSecond": 60.0, "firstTokenMs": 20.0},
    "ours int8": {"tokensPerSecond": 90.0},
    "theirs": {"tokensPerSecond": 30.0, "firstTokenMs": 50.0},
}


def test_a_rate_is_compared_as_our_best_row_over_theirs() -> None:
    bar = ratio_bar("speed", 2.0, 4.0, ROWS, ["ours", "ours int8"], ["theirs"])
    assert (bar.figure, bar.holds, bar.reached) == (3.0, True, False)


def test_a_time_is_compared_the_other_way_round() -> None:
    bar = ratio_bar("first token", 3.0, 4.0, ROWS, ["ours"], ["theirs"], "firstTokenMs")
    assert (bar.figure, bar.holds) == (2.5, False)


def test_what_could_not_be_measured_does_not_hold() -> None:
    bar = ratio_bar("speed", 1.0, 2.0, ROWS, ["ours"], ["a peer that did not start"])
    assert bar.figure is None
    assert not bar.holds
    assert "a peer that did not start" in bar.line()


@pytest.mark.parametrize(("figure", "holds", "reached"), [(2.0, True, True), (3.0, True, True), (4.0, True, False)])
def test_of_a_limit_less_is_better(figure: float, holds: bool, reached: bool) -> None:
    bar = Bar("seconds", 8.0, 3.0, figure, higher=False)
    assert (bar.holds, bar.reached) == (holds, reached)


def test_a_bar_without_a_must_always_holds() -> None:
    assert Bar("only to be reached", None, 1.0, 0.5).holds


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values_with_enough_at_or_below_it(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6


def test_rates_count_tokens_and_not_chunks() -> None:
    # Two requests at once, 8 tokens each; the second sends two tokens a chunk.
    one = Reply(0.0, tuple(1.0 + 0.5 * number for number in range(8)), 8, 4)
    two = Reply(0.0, (1.0, 2.0, 3.0, 4.0), 8, 4)
    found = summarise([one, two])
    assert found.tokens_per_second == pytest.approx(16 / 4.5)
    assert found.decode_per_second == pytest.approx((7 / 3.5 + 7 / 3.0) / 2)
    assert (found.first_p50, found.gap_p50, found.gap_p99) == (1.0, 0.5, 1.0)

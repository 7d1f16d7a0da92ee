"""How often to save: the estimate lies where the expected loss is least, and knows its limits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.trainer.interval import (
    LONGEST,
    SHORTEST,
    automatic,
    best_interval,
    expected_loss,
    mean_time_between_failures,
)


@settings(max_examples=30, deadline=None)
@given(mtbf=st.floats(60, 1e6), ratio=st.floats(1e-5, 0.1))
def test_no_other_interval_loses_noticeably_less(mtbf: float, ratio: float) -> None:
    cost = ratio * mtbf
    best = best_interval(cost, mtbf)
    least = min(expected_loss(best * factor, cost, mtbf) for factor in (0.3, 0.5, 0.8, 0.9, 1.1, 1.25, 2.0, 3.0))
    assert expected_loss(best, cost, mtbf) <= least * 1.01


def test_youngs_rule_is_what_remains_where_failures_are_rare() -> None:
    # 2 s a checkpoint and a failure a day: every sqrt(2 * 2 * 86400) = 588 s.
    assert best_interval(2.0, 86400.0) == pytest.approx(588, rel=0.01)


def test_where_a_checkpoint_costs_more_than_it_can_save_the_mean_time_between_failures_remains() -> None:
    assert best_interval(50.0, 10.0) == 10.0


@pytest.mark.parametrize(("cost", "mtbf"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 5.0)])
def test_nonsense_is_refused(cost: float, mtbf: float) -> None:
    with pytest.raises(ValueError, match="have to be positive"):
        best_interval(cost, mtbf)


def test_what_is_known_of_failures_outweighs_what_was_supposed() -> None:
    supposed = mean_time_between_failures(0, 0, workers=1)
    assert supposed == 86400
    assert mean_time_between_failures(0, 0, workers=8) == supposed / 8
    # Ten failures in a day: about one every two hours and a half.
    assert mean_time_between_failures(86400, 10, workers=1) == pytest.approx(2 * 86400 / 11)


def test_two_checkpoints_never_overlap_and_there_is_one_an_hour() -> None:
    assert automatic(cost=0.05, duration=90.0, mtbf=600.0) == 180.0
    assert automatic(cost=0.0, duration=0.1, mtbf=1.0) == SHORTEST
    assert automatic(cost=60.0, duration=1.0, mtbf=1e7) == LONGEST

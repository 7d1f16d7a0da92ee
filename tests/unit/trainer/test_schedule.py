"""The learning rate is a function of the step; evaluations come when they are due and at the end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeformer.contract.job import Training
from kubeformer_runtime.trainer.schedule import count_steps, evaluation_due, factor, learning_rate, warmup


def training(**changes: object) -> Training:
    """The contract's defaults and `changes`."""
    return Training(objective_metric="validation/loss", objective_direction="Minimize", **changes)  # type: ignore[arg-type]


@given(
    kind=st.sampled_from(["Cosine", "Linear", "Constant"]),
    total=st.integers(1, 5000),
    percent=st.integers(0, 100),
    data=st.data(),
)
def test_every_step_that_is_taken_learns_and_none_learns_more_than_asked(
    kind: str, total: int, percent: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert 0 < factor(kind, step, total, warmup(total, percent)) <= 1  # type: ignore[arg-type]


@given(total=st.integers(2, 500), percent=st.integers(0, 90), kind=st.sampled_from(["Cosine", "Linear"]))
def test_it_rises_during_warm_up_and_falls_ever_after(total: int, percent: int, kind: str) -> None:
    steps = warmup(total, percent)
    values = [factor(kind, step, total, steps) for step in range(total)]  # type: ignore[arg-type]
    assert values[:steps] == sorted(values[:steps])
    assert values[steps:] == sorted(values[steps:], reverse=True)


def test_cosine_is_at_the_top_after_warm_up_and_half_way_down_in_the_middle() -> None:
    assert factor("Cosine", 100, 1100, 100) == 1.0
    assert factor("Cosine", 600, 1100, 100) == pytest.approx(0.5)
    assert learning_rate(training(learning_rate=2e-3, warmup_percent=0), 500, 1000) == pytest.approx(1e-3)


@given(every=st.integers(1, 7), per_epoch=st.integers(1, 50), epochs=st.integers(1, 9))
def test_epochs_are_evaluated_at_their_ends_and_the_last_always(every: int, per_epoch: int, epochs: int) -> None:
    settings, total = training(evaluate_every_epochs=every, epochs=epochs), per_epoch * epochs
    due = [step for step in range(total + 1) if evaluation_due(settings, step, per_epoch, total)]
    assert due == sorted({*range(every * per_epoch, total + 1, every * per_epoch), total})


def test_steps_may_be_given_instead_of_epochs() -> None:
    assert count_steps(training(epochs=None, steps=77), steps_per_epoch=10) == 77
    assert count_steps(training(epochs=4), steps_per_epoch=10) == 40
    assert evaluation_due(training(evaluate_every_steps=7), 14, 10, 100)
    assert not evaluation_due(training(evaluate_every_steps=7), 10, 10, 100)

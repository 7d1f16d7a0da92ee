"""What Best means, and when patience ends."""

import math

import pytest

from kubeformer.contract.job import EarlyStopping, Training
from kubeformer_runtime.trainer.state import Fingerprint, State

FINGERPRINT = Fingerprint(data="d", model="m", batch_size=1, seed=0, total_steps=100)


def judged(
    values: list[float], direction: str, patience: int | None = None, min_delta: float = 0.0
) -> tuple[State, int]:
    """The state after evaluations with these values of the objective, and how many there were until patience ended."""
    training = Training(
        objective_metric="validation/score",
        objective_direction=direction,  # type: ignore[arg-type]
        early_stopping=None if patience is None else EarlyStopping(patience=patience, min_delta=min_delta),
    )
    state = State(fingerprint=FINGERPRINT, world_size=1)
    for number, value in enumerate(values, 1):
        state.step = number
        state.judge(training, {"validation/score": value})
        if state.out_of_patience(training):
            return state, number
    return state, len(values)


@pytest.mark.parametrize(
    ("values", "direction", "step"),
    [
        ([0.1, 0.9, 0.5], "Maximize", 2),
        ([0.1, 0.9, 0.5], "Minimize", 1),
        ([0.5, 0.5, 0.5], "Maximize", 1),  # the first of equals
        ([math.nan, 0.2, math.nan], "Maximize", 2),
        ([math.inf, 3.0], "Minimize", 2),
    ],
)
def test_best_is_the_first_evaluation_that_no_other_beats(values: list[float], direction: str, step: int) -> None:
    state, _ = judged(values, direction)
    assert state.best is not None
    assert state.best.step == step


def test_training_stops_after_as_many_evaluations_without_better_as_patience_has() -> None:
    assert judged([0.5, 0.6, 0.6, 0.1, 0.7], "Maximize", patience=2)[1] == 4
    assert judged([0.5, 0.6, 0.6, 0.7, 0.1], "Maximize", patience=2)[1] == 5


def test_an_improvement_of_less_than_min_delta_is_best_but_no_reason_to_go_on() -> None:
    state, evaluations = judged([0.50, 0.51, 0.52], "Maximize", patience=2, min_delta=0.1)
    assert evaluations == 3
    assert state.best is not None
    assert state.best.step == 3


def test_without_early_stopping_nothing_stops_early() -> None:
    assert judged([0.5] * 50, "Maximize")[1] == 50


def test_it_survives_storage_to_the_last_bit_and_with_nan() -> None:
    state, _ = judged([0.1 + 0.2, 1 / 3], "Maximize")
    state.metrics, state.epoch_loss = {"train/loss": math.nan, "validation/loss": math.inf}, 1e-323
    again = State.model_validate_json(state.model_dump_json())
    assert again.best == state.best
    assert again.epoch_loss == state.epoch_loss
    assert math.isnan(again.metrics["train/loss"])
    assert again.metrics["validation/loss"] == math.inf

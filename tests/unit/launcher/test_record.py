"""What the launcher says of a worker: from heartbeats to /progress, Prometheus and the termination message."""

import json
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer.contract import names
from kubeformer.contract.progress import Epoch, Failure, Phase, Progress
from kubeformer_runtime.launcher import constants
from kubeformer_runtime.launcher.record import Record, prometheus, termination_message


def hear(record: Record, progress: Progress, at: float = 0.0) -> bool:
    return record.hear(progress.model_dump_json().encode(), now=at, monotonic=at)


def test_the_launchers_own_constants_are_those_of_the_contract() -> None:
    for name in (
        "ENV_SETTINGS",
        "ENV_SOCKET",
        "ENV_ATTEMPT",
        "ENV_JOB_COMPLETION_INDEX",
        "SETTINGS_PATH",
        "SCRATCH_DIRECTORY",
        "TERMINATION_MESSAGE_PATH",
        "PORT_PROGRESS",
        "PORT_RENDEZVOUS",
    ):
        assert getattr(constants, name) == getattr(names, name)
    assert constants.SUCCEEDED == names.ExitCode.SUCCEEDED
    assert constants.INVALID == names.ExitCode.INVALID
    assert constants.STOPPED == names.ExitCode.STOPPED
    assert constants.REASON_SETTINGS_INVALID == names.Reason.SETTINGS_INVALID
    assert constants.REASON_RESTARTS_EXHAUSTED == names.RESTARTS_EXHAUSTED
    assert get_args(Phase) == constants.PHASES
    aliases = [field.alias for field in Progress.model_fields.values()]
    assert list(constants.PROGRESS_FIELDS) == aliases


def test_a_fresh_worker_is_starting_and_says_so_in_the_contracts_words() -> None:
    assert Progress.model_validate(Record(5.0).progress()) == Progress(start_time=5.0)


def test_what_a_rank_says_is_served_with_what_only_the_launcher_knows() -> None:
    record = Record(5.0)
    record.begin(3)
    assert hear(record, Progress(phase="Training", step=8, attempt=99, metrics={"train/loss": float("nan")}), at=7.0)
    shown = record.progress()
    assert (shown["step"], shown["attempt"], shown["restarts"], shown["heartbeatTime"]) == (8, 3, 2, 7.0)
    assert shown["metrics"] == {"train/loss": "NaN"}
    Progress.model_validate(shown)


def test_the_lowest_rank_speaks_for_the_worker() -> None:
    record = Record(0.0)
    hear(record, Progress(phase="Training", rank=3, step=1))
    hear(record, Progress(phase="Training", rank=2, step=2))
    hear(record, Progress(phase="Training", rank=3, step=9))
    assert record.progress()["step"] == 2


def test_a_failure_of_any_rank_is_shown() -> None:
    record = Record(0.0)
    hear(record, Progress(phase="Training", rank=0, step=1))
    hear(record, Progress(phase="Failed", rank=1, failure=Failure(reason="DataInvalid", message="line 3")))
    assert record.failure == {"reason": "DataInvalid", "message": "line 3"}


def test_a_new_attempt_forgets_the_failure_and_keeps_the_numbers() -> None:
    record = Record(0.0)
    hear(record, Progress(phase="Failed", step=4, failure=Failure(reason="DataInvalid", message="m")))
    record.begin(2)
    assert record.failure is None
    assert (record.progress()["phase"], record.progress()["step"]) == ("Starting", 4)


def test_the_quietest_rank_decides_how_long_it_was_silent() -> None:
    record = Record(0.0)
    assert record.silent_seconds(10.0, began=4.0) == 6.0
    hear(record, Progress(phase="Training", rank=0), at=5.0)
    hear(record, Progress(phase="Training", rank=1), at=9.0)
    assert record.silent_seconds(10.0, began=4.0) == 5.0


@given(st.binary(max_size=40))
def test_no_line_that_a_rank_may_send_harms_the_launcher(line: bytes) -> None:
    record = Record(0.0)
    before = record.progress()
    if not record.hear(line, now=1.0, monotonic=1.0):
        assert record.progress() == before


def test_unknown_fields_of_a_newer_trainer_are_dropped() -> None:
    record = Record(0.0)
    assert record.hear(b'{"phase": "Training", "novelty": 1}', now=1.0, monotonic=1.0)
    assert "novelty" not in record.progress()


@settings(max_examples=40)
@given(
    epochs=st.integers(0, 60),
    message=st.text(max_size=9000),
    resolved=st.dictionaries(st.text(max_size=30), st.integers(), max_size=80),
)
def test_the_termination_message_fits_and_is_a_progress(epochs: int, message: str, resolved: dict[str, int]) -> None:
    progress = Progress(
        phase="Failed",
        step=12,
        epochs=[Epoch(epoch=n + 1, loss=0.1, seconds=1.5, step_milliseconds=20.25) for n in range(epochs)],
        resolved={**resolved},
        failure=Failure(reason="DataInvalid", message=message),
    )
    text = termination_message(json.loads(progress.model_dump_json()))
    assert len(text) <= 4096
    read = Progress.model_validate_json(text)
    assert (read.phase, read.step) == ("Failed", 12)
    assert read.failure is not None
    assert read.failure.reason == "DataInvalid"


def test_epochs_leave_the_termination_message_first_and_the_oldest_before_the_newest() -> None:
    progress = Progress(
        epochs=[Epoch(epoch=n, loss=0.1, seconds=1.5, step_milliseconds=20.25) for n in range(1, 101)],
        metrics={"train/loss": 0.5},
    )
    read = Progress.model_validate_json(termination_message(json.loads(progress.model_dump_json())))
    assert read.metrics == {"train/loss": 0.5}
    assert read.epochs[-1].epoch == 100
    assert read.epochs[0].epoch > 1


def test_prometheus_text_has_infinities_in_its_own_words() -> None:
    text = prometheus({"phase": "Training", "step": 3, "metrics": {"train/loss": "Infinity", 'a"b': 0.5}})
    assert 'kubeformer_worker_metric{name="train/loss"} +Inf\n' in text
    assert 'kubeformer_worker_metric{name="a\\"b"} 0.5\n' in text
    assert "kubeformer_worker_step 3\n" in text


def test_figures_of_training_have_names_of_their_own_in_prometheus_text() -> None:
    metrics = {
        "train/loss": 0.5,
        "train/mfu": 0.4,
        "train/gradientNorm": 1.5,
        "train/dataWaitPercent": 0.2,
        "train/computeMilliseconds": 12.0,
        "train/checkpointMilliseconds": "NaN",
    }
    text = prometheus({"phase": "Training", "metrics": metrics, "restarts": 2}, {0: 0.25, 1: 3.0})
    for line in (
        "kubeformer_training_loss 0.5",
        "kubeformer_training_mfu_ratio 0.4",
        "kubeformer_training_gradient_norm 1.5",
        "kubeformer_training_data_wait_percent 0.2",
        'kubeformer_training_step_milliseconds{phase="compute"} 12.0',
        'kubeformer_training_step_milliseconds{phase="checkpoint"} NaN',
        'kubeformer_worker_heartbeat_age_seconds{rank="1"} 3.000',
        'kubeformer_worker_metric{name="train/mfu"} 0.4',
        "kubeformer_worker_restarts_total 2",
    ):
        assert f"{line}\n" in text

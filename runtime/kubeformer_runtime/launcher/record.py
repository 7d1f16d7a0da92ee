"""Record: the worker's Progress, put together from heartbeats and from what the launcher itself knows.

Progress is handled as plain JSON here (camelCase); `kubeformer.contract.progress` describes it. Also its
other forms: the termination message, which kubelet cuts at 4,096 bytes, and Prometheus text.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from kubeformer_runtime.launcher import constants

Json = dict[str, Any]


class Record:
    """What a worker says of itself. Ranks are heard one by one; the lowest that spoke is the one shown."""

    def __init__(self, start_time: float) -> None:
        self._shown: Json = {}
        self._beats: dict[int, float] = {}  # rank: monotonic time of its last beat in this attempt
        self._own: Json = {"phase": "Starting", "attempt": 1, "restarts": 0, "startTime": start_time}
        self._heard_time: float | None = None

    def begin(self, attempt: int) -> None:
        """A new attempt: the last numbers stay in view, the phase is Starting until a rank speaks."""
        self._beats.clear()
        self._shown.pop("failure", None)
        self._own |= {"phase": "Starting", "attempt": attempt, "restarts": attempt - 1}

    def hear(self, line: bytes, *, now: float, monotonic: float) -> bool:
        """Take one heartbeat. False if it is none (cut off, not JSON, not a Progress)."""
        try:
            beat = json.loads(line)
        except ValueError:
            return False
        if not isinstance(beat, dict) or beat.get("phase") not in constants.PHASES:
            return False
        rank = beat.get("rank", 0)
        if not isinstance(rank, int):
            return False
        self._beats[rank] = monotonic
        self._heard_time = now
        if rank == min(self._beats) or (beat.get("failure") and not self._shown.get("failure")):
            self._shown = {name: beat[name] for name in constants.PROGRESS_FIELDS if name in beat}
            self._own["phase"] = beat["phase"]
        return True

    def silent_seconds(self, monotonic: float, began: float) -> float:
        """For how long the quietest rank has said nothing; ranks that never spoke do not count, unless none did."""
        return monotonic - min(self._beats.values(), default=began)

    def set(self, phase: str, failure: Mapping[str, str] | None = None) -> None:
        """What the launcher knows better than the ranks: that they ended, and how."""
        self._own["phase"] = phase
        if failure is not None:
            self._shown["failure"] = dict(failure)

    @property
    def beats(self) -> dict[int, float]:
        """When each rank of this attempt last spoke, on the monotonic clock."""
        return dict(self._beats)

    @property
    def phase(self) -> str:
        """The phase shown."""
        phase = self._own["phase"]
        assert isinstance(phase, str)
        return phase

    @property
    def failure(self) -> Mapping[str, str] | None:
        """Why a rank of this attempt gave up, if one said so."""
        failure = self._shown.get("failure")
        return failure if isinstance(failure, dict) else None

    def progress(self) -> Json:
        """The whole document."""
        return {**self._shown, **self._own, "heartbeatTime": self._heard_time}


def termination_message(progress: Mapping[str, Any], limit: int = constants.TERMINATION_MESSAGE_BYTES) -> bytes:
    """Progress as JSON in at most `limit` bytes: epochs go first, oldest before newest; a failure's reason never."""
    slim = dict(progress)
    epochs = list(slim.get("epochs") or [])
    while len(_encode(slim)) > limit and epochs:
        epochs.pop(0)
        slim["epochs"] = epochs
    for name in ("epochs", "resolved", "bestMetrics", "metrics", "artifact", "checkpoint"):
        if len(_encode(slim)) > limit:
            slim.pop(name, None)
    failure = slim.get("failure")
    if failure and len(_encode(slim)) > limit:
        message = str(failure.get("message", ""))
        while message and len(_encode(slim)) > limit:
            message = message[: len(message) * 9 // 10]
            slim["failure"] = {"reason": failure.get("reason", ""), "message": message + "…"}
    return _encode(slim)


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


_GAUGES = (
    ("step", "kubeformer_worker_step", "Optimiser steps done."),
    ("totalSteps", "kubeformer_worker_total_steps", "Optimiser steps of the whole job."),
    ("epoch", "kubeformer_worker_epoch", "Epochs done."),
    ("tokensPerSecond", "kubeformer_worker_tokens_per_second", "Training throughput of all ranks."),
    ("heartbeatTime", "kubeformer_worker_heartbeat_timestamp_seconds", "When a rank last spoke."),
)


_METRICS = (  # figures of training that have a name of their own; all are in kubeformer_worker_metric too
    ("train/loss", "kubeformer_training_loss", "Loss of the last step that was reported."),
    ("train/accuracy", "kubeformer_training_accuracy", "Accuracy on the training rows, as they were seen."),
    ("validation/loss", "kubeformer_validation_loss", "Loss on the validation rows."),
    ("validation/accuracy", "kubeformer_validation_accuracy", "Accuracy on the validation rows."),
    ("train/gradientNorm", "kubeformer_training_gradient_norm", "Length of the last gradient, before it was clipped."),
    ("train/mfu", "kubeformer_training_mfu_ratio", "The model's arithmetic, as a share of the machine's peak."),
    ("train/dataWaitPercent", "kubeformer_training_data_wait_percent", "Share of steps spent waiting for rows."),
)
_PHASE_TIME = re.compile(r"train/(\w+)Milliseconds")  # of which checkpoint is the stall


def prometheus(progress: Mapping[str, Any], ages: Mapping[int, float] | None = None) -> str:
    """Progress in Prometheus' text format, version 0.0.4; `ages` are seconds since each rank of this worker spoke."""
    lines: list[str] = []
    for field, name, text in _GAUGES:
        if progress.get(field) is not None:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {_number(progress[field])}"]
    lines += ["# HELP kubeformer_worker_restarts_total Restarts of the ranks inside this worker."]
    lines += ["# TYPE kubeformer_worker_restarts_total counter"]
    lines += [f"kubeformer_worker_restarts_total {_number(progress.get('restarts', 0))}"]
    lines += [
        "# HELP kubeformer_worker_phase 1 for the phase the worker is in.",
        "# TYPE kubeformer_worker_phase gauge",
    ]
    lines += [f'kubeformer_worker_phase{{phase="{p}"}} {int(p == progress.get("phase"))}' for p in constants.PHASES]
    metrics = progress.get("metrics") or {}
    for name, series, text in _METRICS:
        if name in metrics:
            lines += [f"# HELP {series} {text}", f"# TYPE {series} gauge", f"{series} {_number(metrics[name])}"]
    times = {found[1]: value for name, value in sorted(metrics.items()) if (found := _PHASE_TIME.fullmatch(name))}
    lines += _series("kubeformer_training_step_milliseconds", "Time of a step by phase.", "phase", times)
    spoken = {str(rank): f"{age:.3f}" for rank, age in sorted((ages or {}).items())}
    lines += _series("kubeformer_worker_heartbeat_age_seconds", "Time since a rank last spoke.", "rank", spoken)
    if metrics:
        lines += ["# HELP kubeformer_worker_metric Last value of a training metric."]
        lines += ["# TYPE kubeformer_worker_metric gauge"]
        lines += [f'kubeformer_worker_metric{{name="{_label(k)}"}} {_number(v)}' for k, v in sorted(metrics.items())]
    return "\n".join(lines) + "\n"


def _series(name: str, text: str, label: str, values: Mapping[str, object]) -> list[str]:
    if not values:
        return []
    lines = [f'{name}{{{label}="{_label(key)}"}} {_number(value)}' for key, value in values.items()]
    return [f"# HELP {name} {text}", f"# TYPE {name} gauge", *lines]


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: object) -> str:
    # NaN and infinities travel as the strings "NaN", "Infinity", "-Infinity"; Prometheus says +Inf and -Inf.
    text = str(value)
    return {"Infinity": "+Inf", "-Infinity": "-Inf", "inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(text, text)

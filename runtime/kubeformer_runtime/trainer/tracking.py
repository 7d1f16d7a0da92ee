"""Trackers: TensorBoard, MLflow and Weights & Biases are told the figures that the operator is told, on request.

`tracked` puts them between the reporter and the launcher. They work in a thread of their own behind a queue: training
never waits for a server and never fails by one; what it refuses is said once in the log. A package that the image
lacks is said before training begins.
"""

import importlib.util
import math
import os
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from kubeformer.contract.job import JobSettings, Tracker
from kubeformer.contract.progress import Progress
from kubeformer_runtime.heartbeat import Heartbeat
from kubeformer_runtime.trainer.errors import InvalidJob

_PACKAGES = {"MLflow": "mlflow", "WandB": "wandb"}
_MOST_WAITING = 1000
_FAREWELL_SECONDS = 10.0


class Log(Protocol):
    """Where figures go."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the figures of a step."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


def tracked(settings: JobSettings, heartbeat: Heartbeat, rank: int) -> Heartbeat:
    """The heartbeat, with the job's trackers listening on rank 0. Raises InvalidJob where a package is missing."""
    for tracker in settings.tracking:
        package = _PACKAGES.get(tracker.kind)
        if package is not None and importlib.util.find_spec(package) is None:
            raise InvalidJob(
                f"spec.tracking[{tracker.name}] needs the Python package {package}, which the image does not hold: "
                "name an image that does in spec.pod.image, or use tensorBoard, which needs none"
            )
    if rank != 0 or not settings.tracking:
        return heartbeat
    return Tracking(heartbeat, [_Behind(tracker.name, _maker(settings, tracker)) for tracker in settings.tracking])


def _maker(settings: JobSettings, tracker: Tracker) -> Callable[[], Log]:
    if tracker.kind == "TensorBoard":
        directory = Path(tracker.directory or "tensorboard")
        return lambda: EventFile(directory, time.time)
    return lambda: (MLflowRun if tracker.kind == "MLflow" else WandBRun)(settings, tracker)


class Tracking(Heartbeat):
    """Sends on every progress and hands its figures to the trackers where the step is new."""

    def __init__(self, inner: Heartbeat, logs: list["_Behind"]) -> None:
        super().__init__(None)
        self._inner, self._logs = inner, logs
        self._told: tuple[int, dict[str, float]] = (-1, {})

    def send(self, progress: Progress) -> bool:
        """See Heartbeat."""
        news = (progress.step, dict(progress.metrics))
        if progress.metrics and news != self._told:
            self._told = news
            finite = {name: value for name, value in news[1].items() if math.isfinite(value)}
            if progress.tokens_per_second is not None:
                finite["train/tokensPerSecond"] = progress.tokens_per_second
            for log in self._logs:
                log.put(progress.step, finite)
        if progress.phase in ("Succeeded", "Stopped", "Failed"):
            for log in self._logs:
                log.close()
        return self._inner.send(progress)

    def close(self) -> None:
        """See Heartbeat."""
        self._inner.close()


class _Behind:
    """A Log in a thread behind a queue."""

    def __init__(self, name: str, make: Callable[[], Log]) -> None:
        self._name, self._make = name, make
        self._queue: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, step: int, metrics: Mapping[str, float]) -> None:
        """Figures for later; dropped where too many wait."""
        try:
            self._queue.put_nowait((step, metrics))
        except queue.Full:
            pass

    def close(self) -> None:
        """Waits a little for what is still to be written."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            pass
        self._thread.join(_FAREWELL_SECONDS)

    def _run(self) -> None:
        try:
            log = self._make()
            while (item := self._queue.get()) is not None:
                log.log(*item)
            log.close()
        except Exception as error:  # whatever a third party's client raises: training goes on without it
            print(f"tracking: {self._name} hears no more: {error}", file=sys.stderr, flush=True)


class EventFile:
    """TensorBoard's event file, as its readers expect it: TFRecords of Event messages with scalar summaries.

    Formats: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto. Written here, since a few
    fields of protobuf need no library. Flushed at every step, so that a killed rank loses nothing.
    """

    def __init__(self, directory: Path, now: Callable[[], float]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._now = now
        name = f"events.out.tfevents.{int(now()):010}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = (directory / name).open("ab")
        self._write(_double(1, now()) + _bytes(3, b"brain.Event:2"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One Event: the figures of a step."""
        values = (_bytes(1, name.encode()) + _float(2, value) for name, value in sorted(metrics.items()))
        summary = b"".join(_bytes(1, value) for value in values)
        self._write(_double(1, self._now()) + _varint(2 << 3) + _varint(step) + _bytes(5, summary))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))
        self._file.flush()


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def crc32c(data: bytes) -> int:
    """The CRC of Castagnoli's polynomial (RFC 3720, B.4), bit by bit: event files are small."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


class MLflowRun:
    """A run on an MLflow tracking server; a job that was started again goes on with its run."""

    def __init__(self, settings: JobSettings, tracker: Tracker) -> None:
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient(tracking_uri=tracker.uri)
        name = tracker.project or "kubeformer"
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        tag = f"tags.kubeformer_uid = '{settings.uid}'"
        runs = self._client.search_runs([number], filter_string=tag, max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            return
        tags = {"kubeformer_uid": settings.uid, "mlflow.runName": settings.name}
        self._run = self._client.create_run(number, tags=tags).info.run_id
        for field, value in settings.training.model_dump(mode="json").items():
            self._client.log_param(self._run, field, value)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See Log. MLflow takes no @ in a name."""
        for name, value in metrics.items():
            self._client.log_metric(self._run, name.replace("@", "-at-"), value, step=step)

    def close(self) -> None:
        """See Log."""
        self._client.set_terminated(self._run)


class WandBRun:
    """A run at Weights & Biases; a job that was started again goes on with its run."""

    def __init__(self, settings: JobSettings, tracker: Tracker) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=tracker.project or "kubeformer",
            name=settings.name,
            id=settings.uid,
            resume="allow",
            config=settings.training.model_dump(mode="json"),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See Log."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """See Log."""
        self._run.finish()

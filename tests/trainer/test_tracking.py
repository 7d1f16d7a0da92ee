"""Trackers: figures in TensorBoard's files, read back record by record, and what is said where a package is missing."""

from __future__ import annotations

import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeformer.contract.base import Location
from kubeformer.contract.job import Checkpoint, JobSettings, Output, TextClassification, Tracker, Training
from kubeformer.contract.progress import Progress
from kubeformer_runtime.heartbeat import Heartbeat
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.tracking import crc32c, tracked


def settings(*trackers: Tracker) -> JobSettings:
    """A job that is tracked."""
    return JobSettings(
        name="spam",
        namespace="n",
        uid="u1",
        task=TextClassification(),
        training=Training(objective_metric="validation/loss", objective_direction="Minimize"),
        checkpoint=Checkpoint(directory="x"),
        output=Output(location=Location(uri="pvc://a/b", path="b")),
        tracking=trackers,
    )


def said(step: int, **metrics: float) -> Progress:
    return Progress(phase="Training", step=step, metrics={name.replace("_", "/"): v for name, v in metrics.items()})


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and raw value of each field of a protobuf message (encoding: protobuf.dev/programming-guides/encoding)."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place, value, shift = place + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while place < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or varint()
            yield key >> 3, message[place : place + size]
            place += size


def scalars(path: Path) -> dict[int, dict[str, float]]:
    """Scalars by step; both checksums of every record are checked."""
    data, found, place = path.read_bytes(), dict[int, dict[str, float]](), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        event = data[place + 12 : place + 12 + length]
        for part, at in ((data[place : place + 8], place + 8), (event, place + 12 + length)):
            crc = crc32c(part)
            masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.unpack_from("<I", data, at)[0] == masked
        place += 16 + length
        parts = dict(fields(event))
        if 5 in parts:
            values = [dict(fields(value)) for _, value in fields(parts[5])]
            found[parts[2]] = {value[1].decode(): struct.unpack("<f", value[2])[0] for value in values}
    return found


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_figures_are_in_the_event_file_once_a_step(tmp_path: Path) -> None:
    heartbeat = tracked(
        settings(Tracker(name="board", kind="TensorBoard", directory=str(tmp_path))), Heartbeat(None), 0
    )
    for step in (1, 1, 300):
        heartbeat.send(said(step, train_loss=1 / step, validation_loss=float("nan")))
    heartbeat.send(said(300, train_loss=1 / 300).model_copy(update={"phase": "Stopped"}))
    (path,) = tmp_path.glob("events.out.tfevents.*")
    found = scalars(path)
    assert found.keys() == {1, 300}
    assert found[300] == {"train/loss": pytest.approx(1 / 300)}


@pytest.mark.parametrize(("kind", "package"), [("MLflow", "mlflow"), ("WandB", "wandb")])
def test_a_package_that_the_image_lacks_is_named_before_training(
    kind: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for rank in (0, 1):
        with pytest.raises(InvalidJob, match=rf"spec.tracking\[ours\] needs the Python package {package}"):
            tracked(settings(Tracker(name="ours", kind=kind)), Heartbeat(None), rank)


def test_other_ranks_and_untracked_jobs_keep_their_heartbeat(tmp_path: Path) -> None:
    heartbeat = Heartbeat(None)
    assert tracked(settings(), heartbeat, 0) is heartbeat
    assert tracked(settings(Tracker(name="b", kind="TensorBoard", directory=str(tmp_path))), heartbeat, 1) is heartbeat


def test_a_server_that_cannot_be_reached_costs_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no such host")

    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    heartbeat = tracked(settings(Tracker(name="ours", kind="WandB")), Heartbeat(None), 0)
    heartbeat.send(said(1, train_loss=1.0).model_copy(update={"phase": "Succeeded"}))
    assert "tracking: ours hears no more: no such host" in capfd.readouterr().err

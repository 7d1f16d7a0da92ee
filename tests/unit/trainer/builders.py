"""Small jobs for tests: rows that a tiny network learns within seconds, settings for them, and a way to run them."""

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from kubeformer.contract.base import Location
from kubeformer.contract.job import (
    Architecture,
    Checkpoint,
    Data,
    JobSettings,
    LanguageModel,
    Model,
    Output,
    TextClassification,
    Training,
)
from kubeformer.contract.names import ExitCode
from kubeformer.contract.progress import Progress
from kubeformer_runtime.heartbeat import Heartbeat
from kubeformer_runtime.trainer.report import Clock
from kubeformer_runtime.trainer.run import run
from kubeformer_runtime.trainer.stop import StopWish

FRUIT = ("apple", "pear", "plum", "cherry", "fig", "melon")
TOOLS = ("hammer", "saw", "drill", "chisel", "file", "plane")
FILLER = ("the", "a", "some", "with", "and", "under", "over", "many", "few", "old")


def write_rows(path: Path, count: int = 120, seed: int = 0) -> Path:
    """Texts about fruit or tools, of different lengths, as JSON Lines with text and label."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            label, words = draw.choice((("fruit", FRUIT), ("tool", TOOLS)))
            text = [draw.choice(FILLER) for _ in range(draw.randint(2, 12))] + [draw.choice(words)]
            draw.shuffle(text)
            file.write(json.dumps({"text": " ".join(text), "label": label}) + "\n")
    return path


def location(path: Path) -> Location:
    """Somewhere on this machine."""
    return Location(uri=f"pvc://test/{path.name}", path=str(path))


def job(directory: Path, *, task: str = "TextClassification", name: str = "job", **changes: Any) -> JobSettings:
    """Settings of a job over DIRECTORY/rows.jsonl; `changes` are fields of training, model or checkpoint by name."""
    rows = directory / "rows.jsonl"
    if not rows.exists():
        write_rows(rows)
    classify = task == "TextClassification"
    architecture: dict[str, Any] = {
        "layers": 1,
        "width": 16,
        "heads": 2,
        "activation": "ReLU" if classify else "SwiGLU",
        "dropout": 0.1,
    }
    training: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "seed": 7,
        "objective_metric": "validation/accuracy" if classify else "validation/loss",
        "objective_direction": "Maximize" if classify else "Minimize",
    }
    checkpoint: dict[str, Any] = {"directory": str(directory / name / "checkpoints"), "interval_seconds": 3600}
    for field, value in changes.items():
        place = next(
            (
                fields
                for fields, model in ((training, Training), (architecture, Architecture), (checkpoint, Checkpoint))
                if field in model.model_fields
            ),
            None,
        )
        assert place is not None, field
        place[field] = value
    return JobSettings(
        name=name,
        namespace="test",
        uid="0000",
        task=TextClassification(max_length=16) if classify else LanguageModel(sequence_length=16),
        model=Model(architecture=Architecture(**architecture)),
        data=Data(source=location(rows), validation_percent=20, vocabulary_size=300),
        training=Training(**training),
        checkpoint=Checkpoint(**checkpoint),
        output=Output(location=location(directory / name / "model")),
    )


class Listener(Heartbeat):
    """A launcher that remembers what it hears; at a given step it asks the rank to stop, or ends it."""

    def __init__(self, stop_at_step: int | None = None, die_at_step: int | None = None) -> None:
        super().__init__(None)
        self.heard: list[Progress] = []
        self.stop, self.stop_at_step, self.die_at_step = Wish(), stop_at_step, die_at_step

    def send(self, progress: Progress) -> bool:
        """Remembers."""
        self.heard.append(progress)
        if self.die_at_step is not None and progress.step >= self.die_at_step:
            os._exit(9)
        if self.stop_at_step is not None and progress.step >= self.stop_at_step:
            self.stop.wished = True
        return True

    @property
    def last(self) -> Progress:
        """What was said last."""
        return self.heard[-1]


class Wish(StopWish):
    """A wish to stop that comes from a test, not from a signal."""

    def listen(self) -> None:
        """Leaves the process's signals alone."""

    def deafen(self) -> None:
        """Leaves the process's signals alone."""


class Ticking:
    """A clock on which two seconds pass whenever someone looks: whatever is due once a second is due every time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2.0
        return self.now


def train(
    settings: JobSettings,
    *,
    stop_at_step: int | None = None,
    die_at_step: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[ExitCode, Listener]:
    """Runs one rank in this process, on a clock that ticks."""
    listener = Listener(stop_at_step, die_at_step)
    alone = {"LOCAL_WORLD_SIZE": str(os.cpu_count())}  # as if it shared the machine: one thread
    code = run(settings, environment or alone, listener, listener.stop, Clock(Ticking(), Ticking()))
    return code, listener


def published(settings: JobSettings) -> dict[str, torch.Tensor]:
    """The weights that a job published."""
    return load_file(Path(settings.output.location.path) / "model.safetensors")


def same_bits(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def checkpoints(settings: JobSettings) -> list[Path]:
    """The job's checkpoints, oldest first."""
    return sorted(Path(settings.checkpoint.directory).glob("step-*"))

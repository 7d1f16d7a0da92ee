"""Small jobs of any kind of task, beside the ones of tests/unit/trainer/builders.py."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kubeformer.contract.job import Architecture, Checkpoint, Data, JobSettings, Model, Output, Task, Training
from tests.unit.trainer.builders import location


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job_of(
    directory: Path, task: Task, source: Path, *, name: str = "job", base: Path | None = None, **training: Any
) -> JobSettings:
    """A job over `source`; from scratch a tiny decoder, else on from `base`. `training` are fields of Training."""
    architecture = Architecture(layers=1, width=32, heads=2, activation="SwiGLU", dropout=0.0)
    fields: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "objective_metric": "validation/loss",
        "objective_direction": "Minimize",
    }
    return JobSettings(
        name=name,
        namespace="test",
        uid="0000",
        task=task,
        model=Model(base=location(base)) if base is not None else Model(architecture=architecture),
        data=Data(source=location(source), validation_percent=20, vocabulary_size=300),
        training=Training(**{**fields, **training}),
        checkpoint=Checkpoint(directory=str(directory / name / "checkpoints"), interval_seconds=3600),
        output=Output(location=location(directory / name / "model")),
    )

"""Job settings and data files for the tests of the data room."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kubeformer.contract.base import Location
from kubeformer.contract.job import (
    Architecture,
    Checkpoint,
    Data,
    JobSettings,
    LanguageModel,
    Model,
    Output,
    Prepare,
    Task,
    TextClassification,
    Training,
)

WORDS = (
    *"abcdefghijklmnopqrstuvwxyz",
    *("the", "mail", "is", "not", "from", "an", "old", "friend", "who", "has", "to", "be", "at", "home"),
)


def no_beat() -> None:
    """Nobody listens."""


def location(path: Path) -> Location:
    """A location on this machine."""
    return Location(uri=f"pvc://mail/{path.name}", path=str(path))


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mails(count: int) -> list[dict[str, str]]:
    """`count` different texts, every third with the label spam."""
    texts = [f"mail number {n} " + " ".join(WORDS[(n * k) % len(WORDS)] for k in range(1, 12)) for n in range(count)]
    return [{"text": text, "label": "spam" if n % 3 == 0 else "ham"} for n, text in enumerate(texts)]


def settings(
    directory: Path,
    source: Path,
    *,
    task: Task | None = None,
    validation: Path | None = None,
    test: Path | None = None,
    base: Path | None = None,
    uid: str = "u1",
    seed: int = 0,
    vocabulary_size: int = 300,
    **prepare: Any,
) -> JobSettings:
    """A job whose checkpoints are in `directory`; `prepare` are fields of Prepare."""
    model = Model(base=location(base)) if base else Model(architecture=Architecture(layers=1, width=8, heads=1))
    return JobSettings(
        name="job",
        namespace="default",
        uid=uid,
        task=task or TextClassification(max_length=32),
        model=model,
        data=Data(
            source=location(source),
            prepare=Prepare(**prepare),
            validation=location(validation) if validation else None,
            test=location(test) if test else None,
            vocabulary_size=vocabulary_size,
        ),
        training=Training(objective_metric="validation/loss", objective_direction="Minimize", seed=seed),
        checkpoint=Checkpoint(directory=str(directory)),
        output=Output(location=Location(uri="pvc://models/job", path=str(directory / "model"))),
    )


__all__ = ["LanguageModel", "TextClassification"]

"""The examples: one file a task, each of which the API server would take as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kubeformer.api.training_job import TrainingJob
from kubeformer.api.training_task import Task

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def jobs() -> list[TrainingJob]:
    """Every TrainingJob in examples/*.yaml."""
    documents: list[Any] = []
    for path in sorted(EXAMPLES.glob("*.yaml")):
        documents += yaml.load_all(path.read_text("utf-8"), Loader=yaml.CSafeLoader)
    return [TrainingJob.parse(document) for document in documents if document["kind"] == "TrainingJob"]


def test_there_is_an_example_of_every_task_and_each_is_valid() -> None:
    kinds = {job.spec.task.kind for job in jobs()}
    assert kinds == {field.alias for field in Task.model_fields.values()}


def test_examples_can_be_applied_side_by_side() -> None:
    names = [job.metadata.name for job in jobs()]
    assert len(set(names)) == len(names)

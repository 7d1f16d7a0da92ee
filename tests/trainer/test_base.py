"""Weights outside of the cluster are fetched once a pod, whatever the number of its ranks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from kubeformer.contract.base import Location
from kubeformer.contract.job import Checkpoint, JobSettings, Model, Output, TextClassification, Training
from kubeformer_runtime.trainer.base import fetch_base


def settings(uri: str, path: Path) -> JobSettings:
    return JobSettings(
        name="spam",
        namespace="n",
        uid="u",
        task=TextClassification(),
        model=Model(base=Location(uri=uri, path=str(path))),
        training=Training(objective_metric="validation/loss", objective_direction="Minimize"),
        checkpoint=Checkpoint(directory="x"),
        output=Output(location=Location(uri="pvc://a/b", path="b")),
    )


def test_the_first_rank_fetches_and_the_others_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = settings("hf://org/name", tmp_path / "hf" / "org" / "name")
    fetched: list[str] = []

    def fetch(location: Location, field: str, beat: Any) -> None:
        fetched.append(field)
        Path(location.path).mkdir(parents=True)

    monkeypatch.setattr("kubeformer_runtime.trainer.base.fetch", fetch)
    beats: list[int] = []
    other = threading.Thread(target=fetch_base, args=(job, lambda: beats.append(1), 1))
    other.start()
    assert fetched == []
    fetch_base(job, lambda: None, 0)
    other.join(30)
    assert not other.is_alive()
    fetch_base(job, lambda: None, 0)  # a start after the first finds it there
    assert fetched == ["model"]


def test_a_base_on_a_claim_needs_nothing(tmp_path: Path) -> None:
    fetch_base(settings("pvc://models/base", tmp_path), lambda: None, 0)
    assert list(tmp_path.iterdir()) == []

"""kubeformer-train: rows to a model on this machine, with curves; Ctrl-C saves, and the same command goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN = [sys.executable, "-m", "kubeformer_runtime.trainer.cli"]
SMALL = [
    "--layers",
    "1",
    "--width",
    "16",
    "--heads",
    "2",
    "--batch-size",
    "8",
    "--set",
    "data.tokenizer.train.vocabularySize=300",
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Texts whose label can be learnt."""
    path = tmp_path / "mails.jsonl"
    texts = ["win a prize now", "a meeting at noon"]
    lines = [json.dumps({"text": f"{texts[n % 2]} {n}", "label": ["spam", "ham"][n % 2]}) for n in range(60)]
    path.write_text("\n".join(lines), "utf-8")
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run([*TRAIN, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False)


def test_rows_become_a_model_with_curves_beside_it(rows: Path, tmp_path: Path) -> None:
    model = tmp_path / "spam"
    done = run(rows, "--task", "textClassification", "--epochs", "3", "--output", model, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validation accuracy" in done.stdout  # each epoch
    assert "[========================]" in done.stderr
    assert (model / "model.safetensors").is_file()
    assert (model / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (model / "curves.html").read_text("utf-8")
    history = json.loads((model / "history.json").read_text("utf-8"))
    assert len(history["validation/loss"]) == 3
    again = run(rows, "--task", "textClassification", "--epochs", "3", "--output", model, *SMALL)
    assert "already published" in again.stdout


def test_ctrl_c_saves_a_checkpoint_from_which_the_same_command_goes_on(rows: Path, tmp_path: Path) -> None:
    model = tmp_path / "spam"
    command = [*TRAIN, str(rows), "--task", "textClassification", "--steps", "300", "--output", str(model), *SMALL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
    assert process.stdout is not None
    seen, deadline = "", time.monotonic() + 600
    while "rows to train on" not in seen:  # early, so that a slow machine cannot finish first
        assert time.monotonic() < deadline, seen
        seen += process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=600)[0]
    assert process.returncode == 143, seen + rest
    assert "the same command goes on from there" in rest
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed from step" in done.stdout


def test_a_training_job_of_a_cluster_runs_here_with_its_claims_as_folders(rows: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        """
apiVersion: kubeformer.dev/v1alpha1
kind: TrainingJob
metadata: {name: spam-filter}
spec:
  task: {textClassification: {}}
  data: {uri: "pvc://mail/mails.jsonl", tokenizer: {train: {vocabularySize: 300}}}
  model: {architecture: {layers: 1, width: 16, heads: 2}}
  training: {steps: 5, batchSize: 8}
""",
        "utf-8",
    )
    done = run(job, "--volume", f"mail={rows.parent}", "--volume", f"kubeformer={tmp_path / 'own'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "own" / "models" / "spam-filter" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mails.jsonl"], "say what to learn, such as --task"),
        (["nowhere.jsonl", "--task", "chat"], "there is no file"),
        (["mails.jsonl", "--task", "textClassification", "--epochs", "-1"], "spec.training.epochs: -1"),
        (["mails.jsonl", "--task", "chat"], "model.uri"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_sentence(rows: Path, arguments: list[str], words: str) -> None:
    done = run(rows.parent / arguments[0], *arguments[1:])
    assert done.returncode == 2
    assert words in done.stderr

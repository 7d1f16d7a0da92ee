"""A custom task: the user's own command under the launcher, in an image that has no more than Python's library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kubeformer.contract.progress import Progress
from kubeformer_runtime.integrations import LightningCallback, Reporter
from kubeformer_runtime.launcher.copy import copy

THREE_LINES = """
import os, sys
from kubeformer_runtime.integrations import report
print("rows", open(os.environ["KUBEFORMER_DATA"]).read().strip(), "world", os.environ["WORLD_SIZE"])
for step in range(1, 6):
    report(step, total_steps=5, loss=1 / step)
report(5, checkpoint=os.environ["KUBEFORMER_CHECKPOINTS"] + "/step-5", metrics={"validation/accuracy": float("nan")})
"""


def settings(folder: Path, command: list[str], **task: Any) -> Path:
    """The settings of a custom task with its rows and folders below `folder`."""
    (folder / "rows.jsonl").write_text("seven", "utf-8")
    place = {"uri": "pvc://a/rows.jsonl", "path": str(folder / "rows.jsonl")}
    document = {
        "uid": "u",
        "task": {"kind": "Custom", "command": command, **task},
        "data": {"source": place},
        "checkpoint": {"directory": str(folder / "checkpoints")},
        "output": {"location": {"uri": "pvc://a/out", "path": str(folder / "out")}},
        "recovery": {"maxRestarts": 1, "hangTimeoutSeconds": 60},
    }
    path = folder / "settings.json"
    path.write_text(json.dumps(document), "utf-8")
    return path


def launch(folder: Path, command: list[str], **task: Any) -> tuple[int, Progress, str]:
    """Runs the copied launcher with a bare Python: exit code, last words, output."""
    copy(folder / "copied")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(folder / "copied"),
        "KUBEFORMER_SETTINGS": str(settings(folder, command, **task)),
        "KUBEFORMER_SOCKET": str(folder / "launcher.sock"),
    }
    log = folder / "termination-log"
    launcher = [sys.executable, "-S", "-m", "kubeformer_runtime.launcher"]  # -S: without site-packages
    options = ["--listen", "127.0.0.1:0", "--termination-log", str(log)]
    done = subprocess.run(
        [*launcher, *options], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    return done.returncode, Progress.model_validate_json(log.read_bytes()), done.stdout + done.stderr


def test_three_lines_report_steps_metrics_and_checkpoints(tmp_path: Path) -> None:
    code = tmp_path / "train.py"
    code.write_text(THREE_LINES, "utf-8")
    place = {"uri": "configmap://code/train.py", "path": str(code)}
    status, said, output = launch(tmp_path, [sys.executable, "-S", "train.py"], code=place)
    assert status == 0, output
    assert "rows seven world 1" in output
    assert (said.phase, said.step, said.total_steps) == ("Succeeded", 5, 5)
    assert said.metrics["train/loss"] == pytest.approx(0.2)
    assert said.metrics["validation/accuracy"] != said.metrics["validation/accuracy"]  # NaN arrives
    assert said.checkpoint is not None
    assert said.checkpoint.path.endswith("/checkpoints/step-5")


def test_a_command_that_says_nothing_is_no_worse_for_it(tmp_path: Path) -> None:
    status, said, output = launch(tmp_path, [sys.executable, "-S", "-c", "pass"])
    assert status == 0, output
    assert said.phase == "Succeeded"


def test_a_command_that_fails_is_started_again_and_then_given_up(tmp_path: Path) -> None:
    status, said, output = launch(tmp_path, [sys.executable, "-S", "-c", "raise SystemExit(3)"])
    assert status == 1, output
    assert output.count("exit code 3") == 2 + 1  # each attempt, and in the last words
    assert said.failure is not None
    assert said.failure.reason == "RestartsExhausted"


@pytest.mark.parametrize(
    ("command", "task", "words"),
    [
        (["no-such-program"], {}, "the image has no program 'no-such-program'"),
        (["python"], {"code": {"uri": "pvc://a/x.py", "path": "/nowhere/x.py"}}, "nothing is at pvc://a/x.py"),
    ],
)
def test_what_can_never_work_ends_the_job_with_a_sentence(
    tmp_path: Path, command: list[str], task: dict[str, Any], words: str
) -> None:
    status, said, output = launch(tmp_path, command, **task)
    assert status == 78, output
    assert said.failure is not None
    assert words in said.failure.message


def test_outside_of_a_job_nothing_is_sent_and_nothing_fails(tmp_path: Path) -> None:
    assert Reporter(None, 0).report(1, loss=0.5) is False
    assert Reporter(str(tmp_path / "nobody.sock"), 0).report(1, loss=float("inf")) is False


class Trainer:
    """What LightningCallback reads of lightning.Trainer."""

    global_step, current_epoch, max_steps = 3, 1, -1

    @property
    def callback_metrics(self) -> dict[str, float]:
        return {"val_loss": 0.5, "loss": 0.7}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What reaches the launcher."""
    heard: list[dict[str, Any]] = []

    def send(reporter: Reporter) -> bool:
        heard.append({**reporter._said, "metrics": dict(reporter._said["metrics"])})
        return True

    monkeypatch.setattr(Reporter, "_send", send)
    monkeypatch.setenv("KUBEFORMER_SOCKET", str(tmp_path / "launcher.sock"))
    return heard


def test_lightning_calls_every_event_and_those_that_matter_are_told(said: list[dict[str, Any]]) -> None:
    callback = LightningCallback()
    callback.on_fit_start(Trainer(), None)
    callback.setup(Trainer(), None, stage="fit")
    callback.on_train_batch_end(Trainer(), None, None, None, 0)
    assert said[-1]["step"] == 3
    assert said[-1]["metrics"] == {"validation/loss": 0.5, "train/loss": 0.7}
    with pytest.raises(AttributeError):
        callback.no_event()


def test_transformers_trainer_reports_by_its_callback(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
    from transformers import Trainer as HuggingFaceTrainer

    from kubeformer_runtime.integrations import HuggingFaceCallback

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)} for _ in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=4, logging_steps=1, save_steps=2, report_to=[], use_cpu=True
    )
    HuggingFaceTrainer(
        model=LlamaForCausalLM(config), args=arguments, train_dataset=rows, callbacks=[HuggingFaceCallback()]
    ).train()
    assert said[-1]["step"] == said[-1]["totalSteps"] == 4
    assert said[-1]["metrics"]["train/loss"] > 0
    assert said[-1]["checkpoint"]["path"] == str(tmp_path / "out" / "checkpoint-4")
    assert Path(said[-1]["checkpoint"]["path"]).is_dir()

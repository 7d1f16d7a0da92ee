"""Hugging Face's Trainer and TRL's SFTTrainer, in an environment of their own beside the same PyTorch as ours."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.peers.install import ensure, venv

VERSION = "1.16.0"
TRANSFORMERS = "5.24.0"
TORCH = "2.13.0"


def install() -> Path:
    """The directory whose venv/bin/python has both."""
    return ensure(f"trl-{VERSION}", _build, 1.0)


def _build(directory: Path) -> None:
    needs = [f"torch=={TORCH}", f"transformers=={TRANSFORMERS}", f"trl=={VERSION}", "accelerate>=1.10", "datasets>=4"]
    venv(directory, sys.executable, needs)


def train(task: Mapping[str, object], work: Path, seconds: float) -> dict[str, list[float]]:
    """Runs trl_train.py over `task` (see there); returns its `seconds` and `losses` by step.

    Compiled code stays in the environment's own cache. Raises RuntimeError with the end of its log where it fails.
    """
    directory = install()
    given, found = work / "task.json", work / "found.json"
    given.write_text(json.dumps(dict(task)))
    found.unlink(missing_ok=True)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(directory / "inductor"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [str(directory / "venv/bin/python"), "-P", str(Path(__file__).with_name("trl_train.py")), given, found]
    with (work / "peer.log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=seconds)
    if done.returncode or not found.is_file():
        raise RuntimeError("\n".join((work / "peer.log").read_text().splitlines()[-8:]))
    result: dict[str, list[float]] = json.loads(found.read_text())
    return result

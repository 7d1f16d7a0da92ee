"""Hugging Face's own server, `transformers serve`, in an environment of its own beside the same PyTorch as ours."""

import json
import sys
from pathlib import Path

from bench.peers.install import ensure, venv
from bench.peers.server import Launch

VERSION = "5.24.0"
TORCH = "2.13.0"


def install() -> Path:
    """The directory whose venv/bin/transformers is the server's command line; llama.cpp's converter runs in it too."""
    return ensure(f"transformers-{VERSION}", _build, 1.0)


def _build(directory: Path) -> None:
    needs = [f"torch=={TORCH}", f"transformers[serving]=={VERSION}", "accelerate>=1.10", "sentencepiece"]
    venv(directory, sys.executable, needs)


def launch(model: Path, tokens: int, *, batching: bool) -> Launch:
    """Its server; every request asks for exactly `tokens` tokens, through its own field `generation_config`."""
    options = ("--dtype", "bfloat16", "--device", "cpu", *(("--continuous-batching",) if batching else ()))
    generation = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    program = str(install() / "venv" / "bin" / "transformers")
    command = (program, "serve", str(model), "--host", "127.0.0.1", "--port", "{port}", *options)
    return Launch(
        name="transformers bf16" + (" batching" if batching else ""),
        command=command,
        environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
        model=str(model),
        extra={"generation_config": json.dumps(generation)},
        settings=" ".join(options) + ", OMP_NUM_THREADS=2",
        text_per_token=False,
    )

"""Tokens a second against Hugging Face's Trainer and TRL's SFTTrainer: same batches, weights, seed, type and threads.

ROWS=fp32,bf16,chat-fp32,chat-bf16. Each side is a process of its own, alone on the machine, one after the other, in
TURNS turns (2). A figure is the tokens of a step divided by the median time of steps 4 and later of all turns; peers
run with fused AdamW, compiled and not, and the better one counts. MFU: see trainer/metrics.py; attention counts half.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.peers import chatterbot, trl
from bench.trainer.bars import Bar, Bench, table
from examples import smollm2

LENGTH, VOCABULARY = 512, 8192
SKIP = 3  # first steps, in which memory is touched for the first time and code is compiled
THREADS = len(os.sched_getaffinity(0))
SECONDS = 400.0  # one process


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison."""

    trainer: str
    bf16: bool
    batch: int
    steps: int
    learning_rate: float
    rows_per_pass: int
    must: float
    reach: float
    mfu: tuple[float, float] | None = None


ROWS = {
    "fp32": Row("Trainer", False, 8, 12, 1e-3, 4, 1.15, 1.5, (45.0, 65.0)),
    "bf16": Row("Trainer", True, 8, 16, 1e-3, 8, 1.15, 1.5, (30.0, 50.0)),
    "chat-fp32": Row("SFTTrainer", False, 2, 7, 2e-5, 2, 1.3, 2.0),
    "chat-bf16": Row("SFTTrainer", True, 2, 8, 2e-5, 2, 1.3, 2.0),
}


def run(bench: Bench) -> list[Bar]:
    """All rows."""
    trl.install()
    bars: list[Bar] = []
    for name, row in ROWS.items():
        if bench.wants(name):
            bars += compare(name, row, bench)
    return bars


def compare(name: str, row: Row, bench: Bench) -> list[Bar]:
    """Turns of ours and of the peer, compiled and not."""
    work = bench.work / name
    work.mkdir(parents=True, exist_ok=True)
    model, inputs, labels = (pretraining if row.trainer == "Trainer" else chat)(work, row.batch * row.steps)
    task: dict[str, object] = {
        "trainer": row.trainer,
        "model": str(model),
        "inputs": str(inputs),
        "labels": str(labels),
        "batch": row.batch,
        "steps": row.steps,
        "learning_rate": row.learning_rate,
        "bf16": row.bf16,
        "threads": THREADS,
        "output": str(work / "output"),
        "rows_per_pass": row.rows_per_pass,
    }
    names = ("kubeformer", row.trainer, f"{row.trainer}, compiled")
    times: dict[str, list[float]] = {each: [] for each in names}
    losses: dict[str, list[float]] = {}
    measured: list[dict[str, float]] = []
    for turn in range(int(os.environ.get("TURNS", "2"))):
        for each in names:
            if each == "kubeformer":
                found = ours(task, work)
                measured.append(found)
            else:
                found = trl.train(task | {"compile": each != row.trainer}, work, SECONDS)
            times[each] += found["seconds"][SKIP:]
            losses[each] = found["losses"]
            print(
                f"{name}, turn {turn + 1}, {each}: {statistics.median(found['seconds'][SKIP:]):.3f} s a step",
                flush=True,
            )
    tokens = row.batch * LENGTH
    speeds = {each: tokens / statistics.median(found) for each, found in times.items()}
    peak = max(each["peak"] for each in measured)
    utilisation = 100 * speeds["kubeformer"] * measured[0]["operationsPerToken"] / peak
    wait = max(each["dataWaitPercent"] for each in measured)
    peer = max(names[1:], key=lambda each: speeds[each])
    apart = max(abs(mine - other) / other for mine, other in zip(losses["kubeformer"], losses[peer], strict=False))
    lines: list[tuple[object, ...]] = [(each, speeds[each], losses[each][0], losses[each][-1]) for each in names]
    print(table(f"{name}: {LENGTH} tokens a row, {row.batch} rows", ("", "tokens/s", "first", "last loss"), lines))
    bench.figures[name] = {
        "tokensPerSecond": {each: round(speed, 1) for each, speed in speeds.items()},
        "losses": losses,
        "mfuPercent": round(utilisation, 1),
        "peakGFLOPs": round(peak / 1e9, 1),
        "dataWaitPercent": round(wait, 4),
        "phases": measured[-1]["phases"],
    }
    bars = [
        Bar(f"{name}: to {row.trainer}", row.must, row.reach, round(speeds["kubeformer"] / speeds[peer], 3), why=peer),
        Bar(f"{name}: losses apart, per cent", 2.0, 0.5, round(100 * apart, 3), higher=False, why="the furthest step"),
        Bar(f"{name}: data wait, per cent of a step", 1.0, 1.0, round(wait, 4), higher=False),
    ]
    if row.mfu is not None:
        why = f"of {peak / 1e9:.0f} GFLOP/s"
        bars.append(Bar(f"{name}: MFU, per cent", *row.mfu, round(utilisation, 1), why=why))
    return bars


def ours(task: Mapping[str, object], work: Path) -> dict[str, float]:
    """Our loop in a process of its own."""
    given, found = work / "ours.json", work / "ours-found.json"
    given.write_text(json.dumps(dict(task)))
    found.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.trainer.ours", str(given), str(found)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])
    result: dict[str, float] = json.loads(found.read_text())
    return result


def pretraining(work: Path, rows: int) -> tuple[Path, Path, Path]:
    """A Llama of 10M parameters that knows nothing, and rows of the standard library's source, by a BPE of its own."""
    import torch
    from tokenizers import ByteLevelBPETokenizer

    from kubeformer_runtime.model.config import LlamaConfig
    from kubeformer_runtime.model.llama import Llama
    from kubeformer_runtime.model.weights import save

    model = work / "model"
    inputs, labels = work / "inputs.npy", work / "labels.npy"
    if not labels.is_file():
        model.mkdir(exist_ok=True)
        torch.manual_seed(7)
        shape = {"layers": 8, "width": 256, "heads": 4, "key_value_heads": 4, "head_width": 64, "mlp_width": 1024}
        save(model, Llama(LlamaConfig(vocabulary_size=VOCABULARY, max_length=LENGTH, **shape)))
        files = sorted(str(path) for path in Path(json.__file__).parent.parent.glob("*.py"))
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train(files, vocab_size=VOCABULARY, show_progress=False)
        ids = np.concatenate([np.array(tokenizer.encode(Path(file).read_text("utf-8")).ids) for file in files])
        block = ids[: rows * LENGTH].reshape(rows, LENGTH)
        np.save(inputs, block)
        np.save(labels, block)
    return model, inputs, labels


def chat(work: Path, rows: int) -> tuple[Path, Path, Path]:
    """SmolLM2-135M-Instruct, and conversations packed without padding; what the assistant says counts."""
    from tokenizers import Tokenizer

    model = smollm2.ensure()
    inputs, labels = work / "inputs.npy", work / "labels.npy"
    if not labels.is_file():
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        ids, counted = list[int](), list[bool]()
        for conversation in chatterbot.conversations():
            for message in conversation:
                for text, counts in (
                    (f"<|im_start|>{message['role']}\n", False),
                    (f"{message['content']}<|im_end|>", message["role"] == "assistant"),
                    ("\n", False),
                ):
                    found = tokenizer.encode(text, add_special_tokens=False).ids
                    ids += found
                    counted += [counts] * len(found)
        if len(ids) < rows * LENGTH:
            raise RuntimeError(f"{rows} rows need {rows * LENGTH} tokens, the conversations have {len(ids)}")
        block = np.array(ids[: rows * LENGTH]).reshape(rows, LENGTH)
        np.save(inputs, block)
        np.save(labels, np.where(np.array(counted[: rows * LENGTH]).reshape(rows, LENGTH), block, -100))
    return model, inputs, labels

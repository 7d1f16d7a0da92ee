"""SFT of SmolLM2-135M on conversations: how far the loss of held-out answers falls.

PyPI's chatterbot-corpus by an ordinary chat job that trains all weights; the share of the base's own loss by which
that of held-out conversations fell, mean of three seeds, each with others held out. (Part adapter does it by LoRA.)
"""

import statistics
from pathlib import Path

from bench import harness
from bench.peers import chatterbot
from bench.trainer.bars import Bar, Bench, table
from bench.trainer.jobs import finished, located
from examples import smollm2
from kubeformer.contract.job import Chat, Data, Model, Training

SEEDS = (0, 1, 2)
MUST = 20.0  # percent
STEPS, ROWS_A_STEP, LENGTH = 24, 8, 256
NOTHING = 1e-12  # a learning rate that leaves float32 weights as they are


def run(bench: Bench) -> list[Bar]:
    """Loss before and after."""
    base, rows = smollm2.ensure(), chatterbot.write_rows(bench.work / "conversations.jsonl")
    lines, fell = [], list[float]()
    for seed in SEEDS:
        before = _job(bench.work / "before", base, rows, seed, steps=1, rate=NOTHING)["validation/loss"]
        result = _job(bench.work / "after", base, rows, seed, steps=STEPS, rate=1e-4)
        after = result["validation/loss"]
        fell.append(100 * (1 - after / before))
        lines.append((f"seed {seed}", before, after, fell[-1], result["epochs"], result["seconds"]))
    heads = ("", "before", "after", "% lower", "epochs", "s")
    print(table("loss of held-out answers, nats a token", heads, lines))
    bench.figures["percentLower"] = harness.spread(fell)
    why = ", ".join(f"{line[1]:.3f} to {line[2]:.3f}" for line in lines)
    return [Bar("SFT: held-out loss lower by, %", MUST, MUST, round(statistics.fmean(fell), 2), why=why)]


def _job(directory: Path, base: Path, rows: Path, seed: int, *, steps: int, rate: float) -> dict[str, float]:
    """Metrics of a job; every seed's takes the place of the one before, whose states are gigabytes."""
    return finished(
        directory,
        task=Chat(sequence_length=LENGTH),
        model=Model(base=located(base)),
        data=Data(source=located(rows), validation_percent=10),
        training=Training(
            epochs=None,
            steps=steps,
            batch_size=ROWS_A_STEP,
            learning_rate=rate,
            objective_metric="validation/loss",
            objective_direction="Minimize",
            seed=seed,
        ),
    )

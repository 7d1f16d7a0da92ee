"""English to German: an ordinary textToText job against copying and a dictionary, in chrF on messages it never saw.

LibreOffice's message catalogues (examples/corpora.py): a real parallel corpus. 1,000 held-out messages that share
neither side with the training rows but for case, digits and signs; mean of three seeds, each with other messages held
out. The dictionary is learned from the same training rows.
"""

import statistics

import numpy as np

from bench import harness
from bench.trainer.bars import Bar, Bench, table
from bench.trainer.baselines import Dictionary, read, write
from bench.trainer.jobs import finished, located
from examples import corpora
from kubeformer.contract.job import Architecture, Data, Model, TextToText, Training
from kubeformer_runtime.trainer.text_metrics import chrf, chrf_sums

SEEDS = (0, 1, 2)
ROWS = 1000
AHEAD = 10.0


def run(bench: Bench) -> list[Bar]:
    """chrF of all."""
    lines, ours, ahead = [], list[float](), list[float]()
    for seed in SEEDS:
        files = corpora.translation(seed)
        rows, held_out = read(files.train), read(files.held_out)[:ROWS]
        dictionary = Dictionary(rows)
        copied = score([row["source"] for row in held_out], held_out)
        looked_up = score([dictionary.translate(row["source"]) for row in held_out], held_out)
        test = write(bench.work / f"test-{seed}.jsonl", held_out)
        result = finished(
            bench.work / f"seed-{seed}",
            task=TextToText(max_source_length=48, max_target_length=48),
            model=Model(architecture=Architecture(layers=2, width=128, heads=4, activation="ReLU", dropout=0.1)),
            data=Data(source=located(files.train), test=located(test), validation_percent=4, vocabulary_size=2000),
            training=Training(
                epochs=12,
                batch_size=64,
                learning_rate=3e-3,
                objective_metric="validation/chrf",
                objective_direction="Maximize",
                evaluate_every_epochs=3,
                seed=seed,
            ),
        )
        ours.append(result["test/chrf"])
        ahead.append(result["test/chrf"] - max(copied, looked_up))
        lines.append((f"seed {seed}", ours[-1], looked_up, copied, result["seconds"]))
    print(table("chrF on held-out messages", ("", "ours", "dictionary", "copy", "s"), lines))
    bench.figures.update({"chrF": harness.spread(ours), "ahead": harness.spread(ahead)})
    mean = statistics.fmean(ahead)
    return [Bar("translation: chrF ahead of copying and a dictionary", AHEAD, AHEAD, round(mean, 2), why=f"{lines}")]


def score(written: list[str], rows: list[dict[str, str]]) -> float:
    """chrF of a set of texts."""
    pairs = zip(written, rows, strict=True)
    return chrf(np.sum([chrf_sums(text, row["target"]) for text, row in pairs], axis=0).tolist())

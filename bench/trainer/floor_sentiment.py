"""Tweets to negative, neutral or positive: fine-tuning a small encoder beside TF-IDF with logistic regression.

Tweets judged by people (examples/corpora.py); an ordinary textClassification job on from all-MiniLM-L6-v2, and the
peer with C by cross-validation, learn from the same rows. Accuracy on held-out tweets, mean of three seeds, each with
other tweets held out.
"""

import statistics

from bench import harness
from bench.trainer.bars import Bar, Bench, table
from bench.trainer.baselines import read, tfidf_accuracy, thinned, write
from bench.trainer.jobs import finished, located
from examples import corpora
from kubeformer.contract.job import Data, Model, TextClassification, Training

SEEDS = (0, 1, 2)
WITHIN = -2.0  # points
TRAINING_ROWS: int | None = None  # None: all
ROWS: int | None = None
EPOCHS = 1


def run(bench: Bench) -> list[Bar]:
    """Accuracy of both, in percent."""
    encoder = corpora.minilm()
    lines, ours, ahead = [], list[float](), list[float]()
    for seed in SEEDS:
        files = corpora.sentiment(seed)
        rows, held_out = thinned(read(files.train), TRAINING_ROWS), thinned(read(files.held_out), ROWS)
        peer = tfidf_accuracy(rows, held_out)
        train = write(bench.work / f"train-{seed}.jsonl", rows)
        test = write(bench.work / f"test-{seed}.jsonl", held_out)
        result = finished(
            bench.work / f"seed-{seed}",
            task=TextClassification(max_length=64),
            model=Model(base=located(encoder)),
            data=Data(source=located(train), test=located(test), validation_percent=4),
            training=Training(
                epochs=EPOCHS,
                batch_size=32,
                learning_rate=1e-4,
                objective_metric="validation/accuracy",
                objective_direction="Maximize",
                seed=seed,
            ),
        )
        ours.append(100 * result["test/accuracy"])
        ahead.append(ours[-1] - peer)
        lines.append((f"seed {seed}", ours[-1], peer, result["epochs"], result["seconds"]))
    heads = ("", "ours", "TF-IDF + logistic regression", "epochs", "s")
    print(table("percent of held-out tweets judged right", heads, lines))
    bench.figures.update({"accuracy": harness.spread(ours), "ahead": harness.spread(ahead)})
    why = ", ".join(f"{line[1]:.1f} : {line[2]:.1f}" for line in lines)
    mean = round(statistics.fmean(ahead), 2)
    return [Bar("sentiment: points ahead of TF-IDF with logistic regression", WITHIN, WITHIN, mean, why=why)]

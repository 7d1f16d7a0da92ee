"""Debian's descriptions to a line: an ordinary textToText job against taking the first sentence, in ROUGE-L.

Descriptions and synopses of packages (examples/corpora.py), 1,000 held out that share neither with the training rows
but for case, digits and signs; mean of three seeds, each with other packages held out. The model reads the beginning
of a description, lead-1 all of it. 15,000 training rows, with LONG=1 all of them.
"""

import statistics

from bench import harness
from bench.trainer.bars import Bar, Bench, table
from bench.trainer.baselines import first_sentence, read, thinned, write
from bench.trainer.jobs import finished, located
from examples import corpora
from kubeformer.contract.job import Architecture, Data, Model, TextToText, Training
from kubeformer_runtime.trainer.text_metrics import rouge_l

SEEDS = (0, 1, 2)
TRAINING_ROWS = 15_000
ROWS = 1000
EPOCHS = 6


def run(bench: Bench) -> list[Bar]:
    """ROUGE-L of both."""
    lines, ours, ahead = [], list[float](), list[float]()
    for seed in SEEDS:
        files = corpora.summarisation(seed)
        rows = thinned(read(files.train), None if bench.long else TRAINING_ROWS)
        held_out = thinned(read(files.held_out), ROWS)
        lead = rouge_l([first_sentence(row["source"]) for row in held_out], [row["target"] for row in held_out])
        lead /= len(held_out)
        train = write(bench.work / f"train-{seed}.jsonl", rows)
        test = write(bench.work / f"test-{seed}.jsonl", held_out)
        result = finished(
            bench.work / f"seed-{seed}",
            task=TextToText(max_source_length=64, max_target_length=24),
            model=Model(architecture=Architecture(layers=2, width=128, heads=4, activation="ReLU", dropout=0.1)),
            data=Data(source=located(train), test=located(test), validation_percent=4, vocabulary_size=4000),
            training=Training(
                epochs=EPOCHS,
                batch_size=64,
                learning_rate=3e-3,
                objective_metric="validation/rouge-l",
                objective_direction="Maximize",
                evaluate_every_epochs=2,
                seed=seed,
            ),
        )
        ours.append(result["test/rouge-l"])
        ahead.append(ours[-1] - lead)
        lines.append((f"seed {seed}", ours[-1], lead, result["epochs"], result["seconds"]))
    print(table("ROUGE-L on held-out packages", ("", "ours", "lead-1", "epochs", "s"), lines))
    bench.figures.update({"rougeL": harness.spread(ours), "ahead": harness.spread(ahead)})
    why = ", ".join(f"{line[1]:.1f} : {line[2]:.1f}" for line in lines)
    mean = round(statistics.fmean(ahead), 2)
    return [Bar("summarisation: ROUGE-L ahead of lead-1", 0.0, 0.0, mean, why=why)]

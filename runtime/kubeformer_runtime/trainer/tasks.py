"""What is learned: a task turns prepared rows into batches, a batch into sums, and sums into metrics.

The loop knows nothing of texts or labels. It asks a task for the passes of a step (every rank gets equally many),
divides each loss by the weight of the whole global batch, and adds the gradients up: so the gradient is that
of the mean over the batch, whichever rank saw which row, also where the last batch is smaller.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kubeformer.contract.job import Training
from kubeformer_runtime.data.batch import (
    ClassificationBatch,
    LanguageModelBatch,
    classification_batch,
    language_model_batch,
)
from kubeformer_runtime.data.order import BatchOrder, Share, in_order
from kubeformer_runtime.data.prepared import (
    IGNORE,
    ClassificationSplit,
    LanguageModelSplit,
    PreparedClassification,
    PreparedLanguageModel,
)
from kubeformer_runtime.model.classifier import Classifier
from kubeformer_runtime.model.llama import Llama

Network: TypeAlias = Classifier | Llama
Split: TypeAlias = ClassificationSplit | LanguageModelSplit
Batch: TypeAlias = ClassificationBatch | LanguageModelBatch


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over what counts in a batch: rows of a classification, predicted tokens of a language model."""

    loss: Tensor  # scalar, with its graph
    correct: Tensor  # scalar
    weight: float  # how many counted


class Task(Protocol):
    """One kind of learning over one prepared data set."""

    order: BatchOrder

    @property
    def train(self) -> Split:
        """The split that is trained on."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names that `measures` gives."""
        ...

    def weight(self, step: int) -> float:
        """What counts in the global batch of `step`, over all ranks."""
        ...

    def tokens(self, step: int) -> int:
        """Tokens of the global batch that the model reads, padding left out."""
        ...

    def batch(self, split: Split, share: Share) -> Batch:
        """The arrays of one rank's share."""
        ...

    def tally(self, network: Network, batch: Batch) -> Tally:
        """Runs the network forward."""
        ...

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """Metrics from sums over all ranks."""
        ...


class TextClassificationTask:
    """Cross-entropy over labels; accuracy is what counts."""

    metrics = ("loss", "accuracy")

    def __init__(self, prepared: PreparedClassification, training: Training) -> None:
        self.train, self.pad_id = prepared.train, prepared.tokenizer.pad_id
        self.order = BatchOrder(len(prepared.train), training.batch_size, training.seed)

    def weight(self, step: int) -> float:
        """Rows of the global batch."""
        return float(len(self.order.batch(step)))

    def tokens(self, step: int) -> int:
        """See Task."""
        return int(self.train.lengths_R[self.order.batch(step)].sum())

    def batch(self, split: Split, share: Share) -> ClassificationBatch:
        """See Task."""
        return classification_batch(cast(ClassificationSplit, split), share.rows_B, share.weights_B, self.pad_id)

    def tally(self, network: Network, batch: Batch) -> Tally:
        """See Task."""
        batch, device = cast(ClassificationBatch, batch), next(network.parameters()).device
        token_BT = torch.from_numpy(batch.token_ids_BT).to(device)
        label_B, weight_B = torch.from_numpy(batch.labels_B).to(device), torch.from_numpy(batch.weights_B).to(device)
        logit_BC = network(token_BT, torch.from_numpy(batch.lengths_B).to(device)).float()
        loss_B = F.cross_entropy(logit_BC, label_B, reduction="none")
        correct_B = (logit_BC.detach().argmax(-1) == label_B) * weight_B
        return Tally((loss_B * weight_B).sum(), correct_B.sum(), float(batch.weights_B.sum()))

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """Mean cross-entropy in nats, and the share of rows whose likeliest label is right."""
        return {"loss": loss / weight, "accuracy": correct / weight}


class LanguageModelTask:
    """Cross-entropy of each next token over packed sequences."""

    metrics = ("loss", "perplexity", "accuracy")

    def __init__(self, prepared: PreparedLanguageModel, training: Training) -> None:
        self.train = prepared.train
        self.order = BatchOrder(len(prepared.train), training.batch_size, training.seed)

    def weight(self, step: int) -> float:
        """Predicted tokens of the global batch: all but the first of each row."""
        return float((self.train.lengths_R[self.order.batch(step)] - 1).sum())

    def tokens(self, step: int) -> int:
        """See Task."""
        return int(self.weight(step))

    def batch(self, split: Split, share: Share) -> LanguageModelBatch:
        """See Task."""
        return language_model_batch(cast(LanguageModelSplit, split), share.rows_B, share.weights_B)

    def tally(self, network: Network, batch: Batch) -> Tally:
        """See Task."""
        batch, device = cast(LanguageModelBatch, batch), next(network.parameters()).device
        target_N = torch.from_numpy(batch.targets_BS).to(device).flatten()
        logit_NV = network(torch.from_numpy(batch.inputs_BS).to(device)).flatten(0, 1).float()
        loss = F.cross_entropy(logit_NV, target_N, ignore_index=IGNORE, reduction="sum")
        correct = (logit_NV.detach().argmax(-1) == target_N).sum()
        return Tally(loss, correct, float((batch.targets_BS != IGNORE).sum()))

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """Mean cross-entropy in nats, its exponential, and the share of next tokens that came out likeliest."""
        mean = loss / weight
        return {"loss": mean, "perplexity": float(np.exp(min(mean, 700.0))), "accuracy": correct / weight}


def passes(share: Share, rows: int) -> Iterator[Share]:
    """Cuts a share into pieces of at most `rows` rows: gradient accumulation, where a share is too large at once."""
    for start in range(0, len(share.rows_B), rows):
        piece = slice(start, start + rows)
        yield Share(share.rows_B[piece], share.weights_B[piece], share.batch_rows)


def evaluation_shares(split: Split, rows: int, rank: int, size: int) -> list[Share]:
    """Shares of `rows` rows a rank that cover a split once; every rank gets equally many."""
    return in_order(len(split), rows * size, rank, size)

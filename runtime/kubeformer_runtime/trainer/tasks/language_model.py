"""languageModel: cross-entropy of each next token over packed sequences, by a decoder."""

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from kubeformer.contract.job import JobSettings, LanguageModel, Training
from kubeformer_runtime.data.order import Share
from kubeformer_runtime.data.prepared import IGNORE, Int32, Int64, Prepared
from kubeformer_runtime.data.recipes.language_model import (
    LanguageModelBatch,
    LanguageModelSplit,
    language_model_batch,
)
from kubeformer_runtime.trainer import fused
from kubeformer_runtime.trainer.networks import decoder
from kubeformer_runtime.trainer.tasks.base import BaseTask, Network, Ranks, Tally, Totals


class LanguageModelTask(BaseTask):
    """See Task."""

    metrics = ("loss", "perplexity", "accuracy")
    extra_metrics = ("bitsPerByte",)

    def __init__(self, train: LanguageModelSplit, training: Training) -> None:
        super().__init__(train, training)
        self.train: LanguageModelSplit = train
        self.row_tokens = train.blocks_RS1.shape[1] - 1

    def weight(self, step: int) -> float:
        """Predicted tokens of the global batch: all but the first of each row."""
        return float((self.train.lengths_R[self.order.batch(step)] - 1).sum())

    def tokens(self, step: int) -> int:
        """See Task."""
        return int(self.weight(step))

    def batch(self, split: LanguageModelSplit, share: Share) -> LanguageModelBatch:
        """See Task."""
        return language_model_batch(split, share.rows_B, share.weights_B)

    def tally(self, network: Network, batch: LanguageModelBatch) -> Tally:
        """See Task."""
        return next_token_tally(network, batch.inputs_BS, batch.targets_BS)

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """Mean cross-entropy in nats, its exponential, and the share of next tokens that came out likeliest."""
        return next_token_measures(loss, correct, weight)

    def extra(self, network: Any, split: LanguageModelSplit, totals: Totals, ranks: Ranks) -> dict[str, float]:
        """Bits for each byte of the raw text, ends of texts paid for too: comparable over any two vocabularies."""
        return {"bitsPerByte": totals.loss / math.log(2) / float(split.text_bytes_1[0])}


def next_token_tally(network: Network, inputs_BS: Int32, targets_BS: Int64, documents_BS: Int32 | None = None) -> Tally:
    """Cross-entropy of each target that is not IGNORE. `documents_BS`: see Llama."""
    device = next(network.parameters()).device
    target_N = torch.from_numpy(targets_BS).to(device).flatten()
    token_BS = torch.from_numpy(inputs_BS).to(device)
    documents = None if documents_BS is None else torch.from_numpy(documents_BS).to(device)
    if (quick := fused.of(network)) is not None:
        first = None if documents is None else fused.first_seen(documents)
        loss, correct = quick.loss(token_BS, target_N.view(token_BS.shape), first)
        return Tally(loss, correct, float((targets_BS != IGNORE).sum()))
    more = () if documents is None else (documents,)
    logit_NV = network(token_BS, *more).flatten(0, 1).float()
    loss = F.cross_entropy(logit_NV, target_N, ignore_index=IGNORE, reduction="sum")
    correct = (logit_NV.detach().argmax(-1) == target_N).sum()
    return Tally(loss, correct, float((targets_BS != IGNORE).sum()))


def next_token_measures(loss: float, correct: float, weight: float) -> dict[str, float]:
    """See LanguageModelTask.measures."""
    mean = loss / weight
    return {"loss": mean, "perplexity": float(np.exp(min(mean, 700.0))), "accuracy": correct / weight}


def make_task(settings: JobSettings, prepared: Prepared) -> LanguageModelTask:
    """See TaskModule."""
    assert isinstance(prepared.train, LanguageModelSplit)
    return LanguageModelTask(prepared.train, settings.training)


def make_network(settings: JobSettings, prepared: Prepared) -> Network:
    """See TaskModule."""
    assert isinstance(settings.task, LanguageModel)
    return decoder(settings, prepared, settings.task.sequence_length, "languageModel")

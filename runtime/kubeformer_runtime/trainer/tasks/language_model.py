"""languageModel: cross-entropy of each next token over packed sequences, by a decoder."""

import numpy as np
import torch
from torch.nn import functional as F

from kubeformer.contract.job import JobSettings, LanguageModel, Training
from kubeformer_runtime.data.order import Share
from kubeformer_runtime.data.prepared import IGNORE, Prepared
from kubeformer_runtime.data.recipes.language_model import (
    LanguageModelBatch,
    LanguageModelSplit,
    language_model_batch,
)
from kubeformer_runtime.trainer.networks import decoder
from kubeformer_runtime.trainer.tasks.base import BaseTask, Network, Tally


class LanguageModelTask(BaseTask):
    """See Task."""

    metrics = ("loss", "perplexity", "accuracy")

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
        device = next(network.parameters()).device
        target_N = torch.from_numpy(batch.targets_BS).to(device).flatten()
        logit_NV = network(torch.from_numpy(batch.inputs_BS).to(device)).flatten(0, 1).float()
        loss = F.cross_entropy(logit_NV, target_N, ignore_index=IGNORE, reduction="sum")
        correct = (logit_NV.detach().argmax(-1) == target_N).sum()
        return Tally(loss, correct, float((batch.targets_BS != IGNORE).sum()))

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """Mean cross-entropy in nats, its exponential, and the share of next tokens that came out likeliest."""
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

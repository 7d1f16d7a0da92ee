"""preference: direct preference optimisation (DPO), https://arxiv.org/abs/2305.18290, equation 7.

With the margin m = β · (log π(chosen)/π_base(chosen) - log π(rejected)/π_base(rejected)) the loss is -log σ(m): the
model is to raise the chosen answer over the rejected one, against the model it began as. π_base is in the data.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kubeformer.contract.job import JobSettings, Preference, Training
from kubeformer_runtime.data.order import Share
from kubeformer_runtime.data.prepared import Prepared
from kubeformer_runtime.data.recipes.preference import (
    PreferenceBatch,
    PreferenceSplit,
    answer_logprobs,
    preference_batch,
)
from kubeformer_runtime.trainer.networks import decoder
from kubeformer_runtime.trainer.tasks.base import BaseTask, Network, Ranks, Tally, Totals


class PreferenceTask(BaseTask):
    """See Task."""

    metrics = ("loss", "accuracy")
    extra_metrics = ("margin",)

    def __init__(self, train: PreferenceSplit, training: Training, task: Preference, pad_id: int) -> None:
        super().__init__(train, training)
        self.train: PreferenceSplit = train
        self.beta, self.pad_id = task.beta, pad_id
        self.row_tokens = 2 * task.sequence_length

    def tokens(self, step: int) -> int:
        """Of both sequences of each row."""
        return int(self.train.lengths_R[self.order.batch(step)].sum())

    def batch(self, split: PreferenceSplit, share: Share) -> PreferenceBatch:
        """See Task."""
        return preference_batch(split, share.rows_B, share.weights_B, self.pad_id)

    def tally(self, network: Network, batch: PreferenceBatch) -> Tally:
        """See Task."""
        logprob_N = answer_logprobs(network, batch)
        weight_B = torch.from_numpy(batch.weights_B).to(logprob_N.device)
        margin_B = margins(logprob_N, torch.from_numpy(batch.reference_B2).to(logprob_N.device), self.beta)
        loss = -(F.logsigmoid(margin_B) * weight_B).sum()
        margin_B = margin_B.detach()
        correct, margin = ((margin_B > 0) * weight_B).sum(), (margin_B * weight_B).sum()
        return Tally(loss, correct, float(batch.weights_B.sum()), (margin,))

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """Mean loss, and the share of rows whose chosen answer gained on the rejected one."""
        return {"loss": loss / weight, "accuracy": correct / weight}

    def extra(self, network: Any, split: Any, totals: Totals, ranks: Ranks) -> dict[str, float]:
        """Mean margin."""
        return {"margin": totals.more[0] / totals.weight}


def margins(logprob_N: Tensor, reference_B2: Tensor, beta: float) -> Tensor:
    """(B,), the margin of each row. `logprob_N`: of the chosen answers of B rows, then of the rejected ones."""
    chosen_B, rejected_B = logprob_N.chunk(2)
    return beta * ((chosen_B - reference_B2[:, 0]) - (rejected_B - reference_B2[:, 1]))


def make_task(settings: JobSettings, prepared: Prepared) -> PreferenceTask:
    """See TaskModule."""
    assert isinstance(settings.task, Preference)
    assert isinstance(prepared.train, PreferenceSplit)
    return PreferenceTask(prepared.train, settings.training, settings.task, prepared.text_tokenizer.pad_id)


def make_network(settings: JobSettings, prepared: Prepared) -> Network:
    """See TaskModule."""
    assert isinstance(settings.task, Preference)
    return decoder(settings, prepared, settings.task.sequence_length, "preference")

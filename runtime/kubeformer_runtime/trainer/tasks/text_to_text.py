"""textToText: an encoder reads the source, a decoder writes the target. Network: model/seq2seq.py.

Trained by teacher forcing: every token of the target is predicted from those before it as they should be. The loss is
cross-entropy with a tenth of the truth spread over all tokens (label smoothing, https://arxiv.org/abs/1706.03762,
section 5.4), which makes for less certain and better texts; evaluations tell the plain cross-entropy. Pairs of similar
length share a batch.

An evaluation also writes: of up to MOST_WRITTEN pairs, evenly drawn, the target is generated greedily, and compared
by chrF (for translation) and ROUGE-L (for summaries); see trainer/text_metrics.py. Choose that of your task as the
objective: the best loss does not always make the best texts.
"""

import numpy as np
import torch
from torch.nn import functional as F

from kubeformer.contract.job import JobSettings, TextToText, Training
from kubeformer_runtime.data.order import BatchOrder, Share, in_order
from kubeformer_runtime.data.prepared import IGNORE, Int64, Prepared
from kubeformer_runtime.data.recipes.text_to_text import TextToTextBatch, TextToTextSplit, text_to_text_batch
from kubeformer_runtime.data.tokenizer import TextTokenizer
from kubeformer_runtime.model import scratch
from kubeformer_runtime.model.config import read_config
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.seq2seq import Seq2Seq
from kubeformer_runtime.model.seq2seq_config import Seq2SeqConfig
from kubeformer_runtime.model.weights import empty
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.networks import base_model, from_scratch, shape_of
from kubeformer_runtime.trainer.tasks.base import BaseTask, Network, Ranks, Tally, Totals
from kubeformer_runtime.trainer.text_metrics import SUMS, chrf, chrf_sums, rouge_l

SMOOTHING = 0.1
MOST_WRITTEN = 1000  # pairs of an evaluation that a target is generated for
WRITTEN_AT_ONCE = 64


class TextToTextTask(BaseTask):
    """See Task."""

    metrics = ("loss", "perplexity", "accuracy")
    extra_metrics = ("chrf", "rouge-l")

    def __init__(
        self, train: TextToTextSplit, training: Training, task: TextToText, tokenizer: TextTokenizer, start_id: int
    ) -> None:
        super().__init__(train, training)
        self.train: TextToTextSplit = train
        lengths_R = train.source_lengths_R + train.target_lengths_R
        self.order = BatchOrder(len(train), training.batch_size, training.seed, lengths_R)
        self.row_tokens = task.max_source_length + task.max_target_length
        self.most_written, self.tokenizer, self.start_id = task.max_target_length, tokenizer, start_id

    def weight(self, step: int) -> float:
        """Predicted tokens of the global batch, <eos> among them."""
        return float(self.train.target_lengths_R[self.order.batch(step)].sum())

    def tokens(self, step: int) -> int:
        """See Task; of both sides."""
        rows_B = self.order.batch(step)
        return int(self.train.source_lengths_R[rows_B].sum() + self.train.target_lengths_R[rows_B].sum())

    def batch(self, split: TextToTextSplit, share: Share) -> TextToTextBatch:
        """See Task."""
        return text_to_text_batch(split, share.rows_B, share.weights_B, self.tokenizer.pad_id, self.start_id)

    def tally(self, network: Seq2Seq, batch: TextToTextBatch) -> Tally:
        """See Task."""
        device = next(network.parameters()).device
        target_N = torch.from_numpy(batch.targets_BT).to(device).flatten()
        logit_BTV = network(
            torch.from_numpy(batch.sources_BS).to(device),
            torch.from_numpy(batch.source_lengths_B).to(device),
            torch.from_numpy(batch.inputs_BT).to(device),
        )
        counts_N = target_N != IGNORE
        logit_NV, target_N = logit_BTV.flatten(0, 1)[counts_N].float(), target_N[counts_N]
        smoothing = SMOOTHING if network.training else 0.0
        loss = F.cross_entropy(logit_NV, target_N, reduction="sum", label_smoothing=smoothing)
        correct = (logit_NV.detach().argmax(-1) == target_N).sum()
        return Tally(loss, correct, float(len(target_N)))

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """Mean cross-entropy in nats, its exponential, and the share of next tokens that came out likeliest."""
        mean = loss / weight
        return {"loss": mean, "perplexity": float(np.exp(min(mean, 700.0))), "accuracy": correct / weight}

    def extra(self, network: Seq2Seq, split: TextToTextSplit, totals: Totals, ranks: Ranks) -> dict[str, float]:
        """chrF and ROUGE-L of generated targets, both 0 to 100."""
        chosen = drawn(split)
        sums, rouge, count = np.zeros(SUMS), 0.0, 0.0
        for share in in_order(len(chosen), WRITTEN_AT_ONCE * ranks.size, ranks.rank, ranks.size):
            rows_B = chosen[share.rows_B[share.weights_B > 0]]
            if len(rows_B):
                written = self.write(network, split, rows_B)
                wanted = [self.tokenizer.decode(split.target(row).tolist()) for row in rows_B]
                for ours, theirs in zip(written, wanted, strict=True):
                    sums += chrf_sums(ours, theirs)
                rouge, count = rouge + rouge_l(written, wanted), count + len(rows_B)
            ranks.tick()
        *all_sums, rouge, count = ranks.sum([*sums.tolist(), rouge, count])
        return {"chrf": chrf(all_sums), "rouge-l": rouge / count}

    def write(self, network: Seq2Seq, split: TextToTextSplit, rows_B: Int64) -> list[str]:
        """Generated targets of some rows."""
        batch = text_to_text_batch(
            split, rows_B, np.ones(len(rows_B), dtype=np.float32), self.tokenizer.pad_id, self.start_id
        )
        device = next(network.parameters()).device
        token_ids = network.generate(
            torch.from_numpy(batch.sources_BS).to(device),
            torch.from_numpy(batch.source_lengths_B).to(device),
            self.most_written,
        )
        return [self.tokenizer.decode(ids) for ids in token_ids]


def drawn(split: TextToTextSplit) -> Int64:
    """Up to MOST_WRITTEN rows, evenly drawn, then in the order of their sources' lengths: less padding."""
    rows = np.linspace(0, len(split) - 1, min(len(split), MOST_WRITTEN)).round().astype(np.int64)
    return rows[np.argsort(split.source_lengths_R[rows], kind="stable")]


def make_task(settings: JobSettings, prepared: Prepared) -> TextToTextTask:
    """See TaskModule."""
    assert isinstance(settings.task, TextToText)
    assert isinstance(prepared.train, TextToTextSplit)
    tokenizer = prepared.text_tokenizer
    start = tokenizer.pad_id if tokenizer.bos_id is None else tokenizer.bos_id
    if settings.model.base is not None and isinstance(config := read_config(settings.model.base.path), Seq2SeqConfig):
        start = config.start_token_id
    return TextToTextTask(prepared.train, settings.training, settings.task, tokenizer, start)


def make_network(settings: JobSettings, prepared: Prepared) -> Network:
    """See TaskModule."""
    task, base, tokenizer = settings.task, settings.model.base, prepared.text_tokenizer
    assert isinstance(task, TextToText)
    longest = max(task.max_source_length, task.max_target_length)
    if base is not None:
        loaded = base_model(settings, prepared)
        if not isinstance(loaded.config, Seq2SeqConfig):
            raise ModelError(f"{base.uri} is no encoder-decoder; a textToText goes on from a Marian or Pegasus model")
        if longest > loaded.config.max_length:
            raise InvalidJob(
                f"spec.task.textToText: texts of {longest} tokens are asked for, but {base.uri} was made for "
                f"{loaded.config.max_length} at most; lower maxSourceLength and maxTargetLength"
            )
        return loaded.module()
    architecture = from_scratch(settings)
    if tokenizer.eos_id is None:
        raise ModelError("the tokenizer has no end-of-text token, without which no target could end")
    try:
        config = scratch.encoder_decoder(
            shape_of(architecture),
            vocabulary_size=tokenizer.vocabulary_size,
            max_length=longest,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
            dropout=architecture.dropout,
            norm_first=True,  # trains without a long warm-up
        )
        return empty(config)
    except ModelError as error:
        raise InvalidJob(f"spec.model.architecture: {error}") from None

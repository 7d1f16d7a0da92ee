"""textClassification: cross-entropy over labels by our encoder with a head; accuracy is what counts."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from kubeformer.contract.job import JobSettings, TextClassification, Training
from kubeformer_runtime.data.order import Share
from kubeformer_runtime.data.prepared import Prepared
from kubeformer_runtime.data.recipes.text_classification import (
    ClassificationBatch,
    ClassificationSplit,
    classification_batch,
    label_names,
)
from kubeformer_runtime.model import bert, decoder_classifier, scratch
from kubeformer_runtime.model.config import (
    ClassifierConfig,
    DecoderClassifierConfig,
    EncoderConfig,
    LlamaConfig,
    ModernBertConfig,
    Seq2SeqConfig,
)
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.weights import LoadedModel, empty
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.networks import base_model, from_scratch, shape_of
from kubeformer_runtime.trainer.tasks.base import BaseTask, Network, Tally

DROPOUT = 0.1  # of a pretrained body while it is trained on, as in BERT's own fine-tuning


class TextClassificationTask(BaseTask):
    """See Task."""

    metrics = ("loss", "accuracy")

    def __init__(self, train: ClassificationSplit, training: Training, max_length: int, pad_id: int) -> None:
        super().__init__(train, training)
        self.train: ClassificationSplit = train
        self.row_tokens, self.pad_id = max_length, pad_id

    def tokens(self, step: int) -> int:
        """See Task."""
        return int(self.train.lengths_R[self.order.batch(step)].sum())

    def batch(self, split: ClassificationSplit, share: Share) -> ClassificationBatch:
        """See Task."""
        return classification_batch(split, share.rows_B, share.weights_B, self.pad_id)

    def tally(self, network: Network, batch: ClassificationBatch) -> Tally:
        """See Task."""
        device = next(network.parameters()).device
        token_BT = torch.from_numpy(batch.token_ids_BT).to(device)
        label_B, weight_B = torch.from_numpy(batch.labels_B).to(device), torch.from_numpy(batch.weights_B).to(device)
        logit_BC = network(token_BT, torch.from_numpy(batch.lengths_B).to(device)).float()
        loss_B = F.cross_entropy(logit_BC, label_B, reduction="none")
        correct_B = (logit_BC.detach().argmax(-1) == label_B) * weight_B
        return Tally((loss_B * weight_B).sum(), correct_B.sum(), float(batch.weights_B.sum()))

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """Mean cross-entropy in nats, and the share of rows whose likeliest label is right."""
        return {"loss": loss / weight, "accuracy": correct / weight}


def make_task(settings: JobSettings, prepared: Prepared) -> TextClassificationTask:
    """See TaskModule."""
    assert isinstance(settings.task, TextClassification)
    assert isinstance(prepared.train, ClassificationSplit)
    pad_id = prepared.text_tokenizer.pad_id
    return TextClassificationTask(prepared.train, settings.training, settings.task.max_length, pad_id)


def make_network(settings: JobSettings, prepared: Prepared) -> Network:
    """See TaskModule."""
    task, labels, tokenizer = settings.task, label_names(prepared), prepared.text_tokenizer
    assert isinstance(task, TextClassification)
    if settings.model.base is not None:
        loaded = base_model(settings, prepared)
        return _on_from(settings, loaded, task.max_length, labels, tokenizer.pad_id)
    architecture = from_scratch(settings)
    try:
        config = scratch.classifier(
            shape_of(architecture),
            vocabulary_size=tokenizer.vocabulary_size,
            max_length=task.max_length,
            labels=labels,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
            dropout=architecture.dropout,
        )
        return empty(config)
    except ModelError as error:
        raise InvalidJob(f"spec.model.architecture: {error}") from None


def _on_from(
    settings: JobSettings, loaded: LoadedModel, max_length: int, labels: tuple[str, ...], pad_id: int
) -> Network:
    """The body goes on as it is, an encoder's or a language model's; other labels than the base's get a new head."""
    base, config, weights = settings.model.base, loaded.config, loaded.weights
    assert base is not None
    grows = isinstance(config, ModernBertConfig) or (
        isinstance(config, ClassifierConfig) and config.positions == "Rotary"
    )
    if isinstance(config, Seq2SeqConfig):
        raise ModelError(
            f"{base.uri} is an encoder-decoder; a textClassification goes on from a classifier, an "
            "encoder or a language model"
        )
    if not grows and max_length > config.max_length:
        raise InvalidJob(
            f"spec.task.textClassification.maxLength is {max_length}, but {base.uri} knows {config.max_length} "
            "positions"
        )
    dropout = DROPOUT
    match config:
        case EncoderConfig():
            return bert.with_head(config, weights, labels, dropout)
        case LlamaConfig():
            return decoder_classifier.with_head(config, weights, labels, pad_id, dropout)
        case DecoderClassifierConfig():
            if config.labels == labels:
                return loaded.module(dropout)
            return decoder_classifier.with_head(config.decoder, weights, labels, pad_id, dropout)
        case ModernBertConfig() | ClassifierConfig():
            network = empty(replace(config, labels=labels, max_length=max_length if grows else config.max_length))
            heads = ("head.",) if isinstance(config, ClassifierConfig) else ("classifier.",)
            kept = {
                name: value for name, value in weights.items() if labels == config.labels or not name.startswith(heads)
            }
            network.load_state_dict(kept, strict=False)
            return network

"""The network that a job trains: from scratch as the settings draw it, or on from weights that exist."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from kubeformer.contract.job import Architecture, JobSettings, LanguageModel, TextClassification
from kubeformer_runtime.data.prepared import Prepared, PreparedClassification
from kubeformer_runtime.model.classifier import Classifier
from kubeformer_runtime.model.config import ClassifierConfig, LlamaConfig, ModelConfig
from kubeformer_runtime.model.digest import digest
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.weights import LoadedModel, empty, load
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.tasks import Network


def make_network(settings: JobSettings, prepared: Prepared) -> Network:
    """The network before the first step, in float32 on the CPU; the same bits on every rank and at every start.

    Raises:
        ModelError: the base model is missing, altered, or of a kind that the task cannot use.
        InvalidJob: the architecture's numbers do not fit together.
    """
    torch.manual_seed(settings.training.seed)
    if settings.model.base is not None:
        return _from_base(settings, prepared)
    if settings.model.architecture is None:
        raise InvalidJob("spec.model: one of architecture, uri and trainingJobRef has to be given")
    architecture = settings.model.architecture
    try:
        return empty(_config(settings.task, architecture, prepared), architecture.dropout)
    except ModelError as error:
        raise InvalidJob(f"spec.model.architecture: {error}") from None


def model_digest(settings: JobSettings, config: ModelConfig) -> str:
    """What a run began with: the configuration, and the base's digest where there is one."""
    base = digest(settings.model.base.path) if settings.model.base is not None else None
    return hashlib.sha256(json.dumps([config.to_json(), base], sort_keys=True).encode()).hexdigest()


def _config(task: TextClassification | LanguageModel, architecture: Architecture, prepared: Prepared) -> ModelConfig:
    heads, tokenizer = architecture.heads, prepared.tokenizer
    key_value_heads = architecture.key_value_heads or heads
    mlp_width = architecture.mlp_width or 4 * architecture.width
    if isinstance(prepared, PreparedClassification):
        assert isinstance(task, TextClassification)  # prepare() gives what the task names
        return ClassifierConfig(
            vocabulary_size=tokenizer.vocabulary_size,
            width=architecture.width,
            layers=architecture.layers,
            heads=heads,
            key_value_heads=key_value_heads,
            mlp_width=mlp_width,
            max_length=task.max_length,
            labels=prepared.label_names,
            activation=architecture.activation,
            dropout=architecture.dropout,
            pad_token_id=tokenizer.pad_id,
        )
    assert isinstance(task, LanguageModel)
    if architecture.activation != "SwiGLU":
        raise InvalidJob(
            f"spec.model.architecture.activation is {architecture.activation}; a languageModel is written in Llama's "
            "layout, whose MLP is SwiGLU: leave the field out or set it to SwiGLU"
        )
    if architecture.width % heads:
        raise InvalidJob(f"spec.model.architecture: width {architecture.width} cannot be split over {heads} heads")
    return LlamaConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        width=architecture.width,
        layers=architecture.layers,
        heads=heads,
        key_value_heads=key_value_heads,
        head_width=architecture.width // heads,
        mlp_width=mlp_width,
        max_length=task.sequence_length,
        bos_token_id=tokenizer.bos_id,
        eos_token_ids=() if tokenizer.eos_id is None else (tokenizer.eos_id,),
        pad_token_id=tokenizer.pad_id,
    )


def _from_base(settings: JobSettings, prepared: Prepared) -> Network:
    base = settings.model.base
    assert base is not None
    if base.digest is not None and (found := digest(base.path)) != base.digest:
        raise ModelError(f"{base.uri} has digest {found}, but the job was made for {base.digest}")
    loaded = load(Path(base.path), torch.float32)
    vocabulary = prepared.tokenizer.vocabulary_size
    if vocabulary > loaded.config.vocabulary_size:
        raise ModelError(
            f"{base.uri}: its tokenizer knows {vocabulary} tokens, its weights {loaded.config.vocabulary_size}"
        )
    if isinstance(prepared, PreparedClassification):
        assert isinstance(settings.task, TextClassification)
        return _classifier_from_base(base.uri, loaded, settings.task.max_length, prepared.label_names)
    assert isinstance(settings.task, LanguageModel)
    if not isinstance(loaded.config, LlamaConfig):
        raise ModelError(f"{base.uri} is a classifier; a languageModel goes on from a language model")
    if settings.task.sequence_length > loaded.config.max_length:
        raise InvalidJob(
            f"spec.task.languageModel.sequenceLength is {settings.task.sequence_length}, "
            f"but {base.uri} was made for {loaded.config.max_length} tokens at most"
        )
    return loaded.module()


def _classifier_from_base(uri: str, loaded: LoadedModel, max_length: int, labels: tuple[str, ...]) -> Network:
    """The encoder goes on as it is; other labels than the base's get a new head."""
    config = loaded.config
    if not isinstance(config, ClassifierConfig):
        raise ModelError(f"{uri} is a language model; a textClassification goes on from a classifier")
    if config.positions == "Learned" and max_length > config.max_length:
        raise InvalidJob(
            f"spec.task.textClassification.maxLength is {max_length}, but {uri} knows {config.max_length} positions"
        )
    length = config.max_length if config.positions == "Learned" else max_length
    network = Classifier(replace(config, labels=labels, max_length=length))
    kept = {name: value for name, value in loaded.weights.items() if labels == config.labels or name[:5] != "head."}
    network.load_state_dict(kept, strict=False)
    return network

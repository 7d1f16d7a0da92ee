"""The network that a job trains: from scratch as the settings draw it, or on from weights that exist.

`make_network` asks the job's task for it; the rest is what tasks share.
"""

import hashlib
import json
from pathlib import Path

import torch

from kubeformer.contract.job import Architecture, JobSettings
from kubeformer_runtime.data.prepared import Prepared
from kubeformer_runtime.model import scratch
from kubeformer_runtime.model.config import LlamaConfig, ModelConfig
from kubeformer_runtime.model.digest import digest
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.weights import LoadedModel, empty, load
from kubeformer_runtime.trainer.adapter import adapt
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.tasks import Network, module_for


def make_network(settings: JobSettings, prepared: Prepared) -> Network:
    """The network before the first step, in float32 on the CPU; the same bits on every rank and at every start.

    Raises:
        ModelError: the base model is missing, altered, or of a kind that the task cannot use.
        InvalidJob: the architecture's numbers do not fit together.
    """
    torch.manual_seed(settings.training.seed)
    return adapt(settings, module_for(settings).make_network(settings, prepared))


def model_digest(settings: JobSettings, config: ModelConfig) -> str:
    """What a run began with: the configuration, the base's digest where there is one, what adapters are trained."""
    began: list[object] = [config.to_json()]
    began.append(digest(settings.model.base.path) if settings.model.base is not None else None)
    if settings.model.lora is not None:
        began.append(settings.model.lora.model_dump(mode="json"))
    return hashlib.sha256(json.dumps(began, sort_keys=True).encode()).hexdigest()


def from_scratch(settings: JobSettings) -> Architecture:
    """The architecture of a job without a base. Raises InvalidJob where there is none either."""
    if settings.model.architecture is None:
        raise InvalidJob("spec.model: one of architecture, uri and trainingJobRef has to be given")
    return settings.model.architecture


def shape_of(architecture: Architecture) -> scratch.Shape:
    """The numbers of an architecture, as the model room takes them."""
    return scratch.Shape(
        layers=architecture.layers,
        width=architecture.width,
        heads=architecture.heads,
        key_value_heads=architecture.key_value_heads,
        mlp_width=architecture.mlp_width,
        activation=architecture.activation,
    )


def base_model(settings: JobSettings, prepared: Prepared) -> LoadedModel:
    """The base, in float32, checked against its digest and the vocabulary. Raises ModelError."""
    base = settings.model.base
    assert base is not None
    if base.digest is not None and (found := digest(base.path)) != base.digest:
        raise ModelError(f"{base.uri} has digest {found}, but the job was made for {base.digest}")
    loaded = load(Path(base.path), torch.float32)
    vocabulary = prepared.text_tokenizer.vocabulary_size
    if vocabulary > loaded.config.vocabulary_size:
        raise ModelError(
            f"{base.uri}: its tokenizer knows {vocabulary} tokens, its weights {loaded.config.vocabulary_size}; "
            "publish the model again with the tokenizer that it was trained with"
        )
    return loaded


def decoder(settings: JobSettings, prepared: Prepared, length: int, task: str) -> Network:
    """A language model that reads `length` tokens at once, from scratch or from the base.

    `task` is the task's name in the spec, for messages. Raises as make_network.
    """
    base, tokenizer = settings.model.base, prepared.text_tokenizer
    if base is not None:
        loaded = base_model(settings, prepared)
        if not isinstance(loaded.config, LlamaConfig):
            raise ModelError(f"{base.uri} is a classifier; a {task} goes on from a language model")
        if length > loaded.config.max_length:
            raise InvalidJob(
                f"spec.task.{task}.sequenceLength is {length}, "
                f"but {base.uri} was made for {loaded.config.max_length} tokens at most"
            )
        return loaded.module()
    architecture = from_scratch(settings)
    try:
        config = scratch.decoder(
            shape_of(architecture),
            vocabulary_size=tokenizer.vocabulary_size,
            max_length=length,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
        )
        return empty(config, architecture.dropout)
    except ModelError as error:
        raise InvalidJob(f"spec.model.architecture: {error}") from None

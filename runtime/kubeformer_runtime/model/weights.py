"""Weights in and out of a model directory: safetensors, whole or sharded, under Llama's names.

loaded = load("/models/spam", torch.float32, "cpu")     # LoadedModel: config and weights by name
module = loaded.module()                                # a Llama, Seq2Seq, ModernBert ... in evaluation mode
save("/models/new", module)                             # config.json, generation_config.json, model.safetensors
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kubeformer_runtime.model import bert, decoder_classifier, seq2seq
from kubeformer_runtime.model.bert import Bert
from kubeformer_runtime.model.classifier import Classifier
from kubeformer_runtime.model.config import (
    CONFIG_FILE,
    GENERATION_FILE,
    ClassifierConfig,
    LlamaConfig,
    ModelConfig,
    read_config,
)
from kubeformer_runtime.model.decoder_classifier import DecoderClassifier
from kubeformer_runtime.model.decoder_classifier_config import DecoderClassifierConfig
from kubeformer_runtime.model.encoder_config import EncoderConfig
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.files import (
    WEIGHTS_FILE,
    OnBytes,
    check_values,
    read_file,
    read_weights,
    some,
    weight_files,
)
from kubeformer_runtime.model.gpt2 import from_gpt2, name_in_file, to_gpt2
from kubeformer_runtime.model.llama import Llama
from kubeformer_runtime.model.modern_bert import ModernBert
from kubeformer_runtime.model.modern_bert_config import ModernBertConfig
from kubeformer_runtime.model.seq2seq import Seq2Seq
from kubeformer_runtime.model.seq2seq_config import Seq2SeqConfig

Module: TypeAlias = Llama | Seq2Seq | ModernBert | Bert | DecoderClassifier | Classifier
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
POSITION_EMBEDDING = "model.embed_positions.weight"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model directory in memory. `weights` maps state-dict names to tensors of one dtype on one device.

    A decoder's weights carry Llama's names and layout, GPT-2's too (see gpt2.py). With tied embeddings they hold
    "model.embed_tokens.weight" and no "lm_head.weight".
    """

    directory: Path
    config: ModelConfig
    weights: dict[str, Tensor]

    def module(self, dropout: float = 0.0) -> Module:
        """The torch module over these very tensors, in evaluation mode. `dropout` is for training a Llama on."""
        return build(self.config, self.weights, dropout)


def load(
    directory: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_bytes: OnBytes | None = None,
) -> LoadedModel:
    """Reads and checks a whole model directory. `on_bytes`: see read_weights.

    Raises:
        ModelError: something is missing, damaged, or does not fit config.json.
    """
    config = read_config(directory)
    weights = _from_file(config, read_weights(directory, dtype, device, on_bytes))
    check_weights(config, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    check_values(weights)
    return LoadedModel(Path(directory), config, weights)


def _from_file(config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names, from those of a file."""
    match config:
        case LlamaConfig():
            return _decoder_from_file(config, weights)
        case DecoderClassifierConfig():
            return _decoder_from_file(config.decoder, weights)
        case EncoderConfig():
            return bert.from_file(weights)
        case Seq2SeqConfig():
            return seq2seq.from_file(config, weights)
        case ModernBertConfig() | ClassifierConfig():
            return weights


def _decoder_from_file(config: LlamaConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if config.family == "gpt2":
        weights = from_gpt2(weights)
    if config.tied_embeddings:
        weights.pop(HEAD, None)
    # Old exports carry the rotary frequencies as a tensor; they follow from config.json.
    return {name: tensor for name, tensor in weights.items() if not name.endswith("rotary_emb.inv_freq")}


def _to_file(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back."""
    decoder = config.decoder if isinstance(config, DecoderClassifierConfig) else config
    if isinstance(decoder, LlamaConfig) and decoder.family == "gpt2":
        return to_gpt2(tensors, decoder.layers)
    if isinstance(config, Seq2SeqConfig):
        return seq2seq.to_file(config, tensors)
    if isinstance(config, EncoderConfig):
        return {theirs: tensors[ours] for ours, theirs in bert.names_in_file(config).items()}
    return tensors


def check_weights(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ModelError where names or shapes are not those of a model with this config."""
    expected = shapes_of(config)
    gpt2 = isinstance(config, LlamaConfig) and config.family == "gpt2"
    theirs = bert.names_in_file(config) if isinstance(config, EncoderConfig) else {}

    def called(name: str) -> str:
        return name_in_file(name) if gpt2 else theirs.get(name, name)

    if missing := sorted(expected.keys() - shapes.keys()):
        names = sorted({called(name) for name in missing})
        raise ModelError(f"the weights lack {some(names)}, which {CONFIG_FILE} asks for")
    known = set(expected)
    if isinstance(config, EncoderConfig) and not config.labels:
        known |= {"head.weight", "head.bias"}
    if extra := sorted(shapes.keys() - known):
        raise ModelError(f"the weights hold {some(extra)}, which {CONFIG_FILE} does not know")
    for name, shape in expected.items():
        if shapes[name] != shape:
            within = f"{called(name)}: " if called(name) != name else ""
            raise ModelError(f"{within}{name} has shape {shapes[name]}, but {CONFIG_FILE} makes it {shape}")


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model with this config has."""
    if isinstance(config, EncoderConfig) and not config.labels:  # no head, or one of pre-training: the pooler
        whole = shapes_of(replace(config, labels=("0", "1")))
        return {name: shape for name, shape in whole.items() if bert.without_head(name)}
    if isinstance(config, DecoderClassifierConfig):
        shapes = shapes_of(replace(config.decoder, tied_embeddings=True))
        return shapes | {decoder_classifier.SCORE: (len(config.labels), config.width)}
    if not isinstance(config, LlamaConfig):
        try:
            with _Unfilled():
                return {name: tuple(tensor.shape) for name, tensor in tensors_of(empty(config)).items()}
        except RuntimeError:
            raise ModelError(f"{CONFIG_FILE} describes a model that is larger than any memory") from None
    wide, inner = config.heads * config.head_width, config.key_value_heads * config.head_width
    layer_norm = config.norm == "LayerNorm"
    shapes = dict[str, tuple[int, ...]]()

    def add(name: str, *shape: int, bias: bool = False) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    add("model.embed_tokens", config.vocabulary_size, config.width)
    if config.positions == "Learned":
        add("model.embed_positions", config.max_length, config.width)
    for index in range(config.layers):
        layer = f"model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            add(f"{layer}.{norm}", config.width, bias=layer_norm)
        for part, rows in (("q", wide), ("k", inner), ("v", inner)):
            add(f"{layer}.self_attn.{part}_proj", rows, config.width, bias=config.attention_bias)
        add(f"{layer}.self_attn.o_proj", config.width, wide, bias=config.has_output_bias)
        if config.qk_norm:
            add(f"{layer}.self_attn.q_norm", config.head_width)
            add(f"{layer}.self_attn.k_norm", config.head_width)
        for part in ("gate", "up") if config.activation == "SwiGLU" else ("up",):
            add(f"{layer}.mlp.{part}_proj", config.mlp_width, config.width, bias=config.mlp_bias)
        add(f"{layer}.mlp.down_proj", config.width, config.mlp_width, bias=config.mlp_bias)
    add("model.norm", config.width, bias=layer_norm)
    if not config.tied_embeddings:
        add("lm_head", config.vocabulary_size, config.width)
    return shapes


class _Unfilled(TorchFunctionMode):
    """Parameters made inside get no values, and so take address space but no memory.

    torch.device("meta") would do the same, but imports torch's compiler on the way, which takes 3 s.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def empty(config: ModelConfig, dropout: float = 0.0) -> Module:
    """A freshly initialised module. `dropout` is used where the config does not have it."""
    match config:
        case LlamaConfig():
            return Llama(config, dropout)
        case Seq2SeqConfig():
            return Seq2Seq(config)
        case ModernBertConfig():
            return ModernBert(config)
        case EncoderConfig():
            return Bert(config, dropout)
        case DecoderClassifierConfig():
            return DecoderClassifier(config, dropout)
        case ClassifierConfig():
            return Classifier(config)


def build(config: ModelConfig, weights: Mapping[str, Tensor], dropout: float = 0.0) -> Module:
    """A module over the given tensors (shared, not copied), in evaluation mode."""
    check_weights(config, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    with _Unfilled():
        module = empty(config, dropout)
    state = dict(weights)
    if isinstance(config, LlamaConfig) and config.tied_embeddings:
        state[HEAD] = state[EMBEDDING]
    module.load_state_dict(state, assign=True)
    if isinstance(module, Llama) and module.config.tied_embeddings:
        module.lm_head.weight = module.model.embed_tokens.weight
    device = next(iter(weights.values())).device
    return module.to(device).eval()  # moves the rotary frequencies, which no file holds


def tensors_of(module: Module) -> dict[str, Tensor]:
    """The tensors that are saved: the state dict, without the head where it is the embedding again."""
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    if isinstance(module, Llama) and module.config.tied_embeddings:
        del tensors[HEAD]
    return tensors


def save(directory: str | Path, module: Module, dtype: torch.dtype = torch.float32) -> None:
    """Writes config.json, generation_config.json (language models) and model.safetensors; the directory exists.

    Not atomic by itself: see digest.publish.
    """
    directory, config = Path(directory), module.config
    document = config.to_json() | {"dtype": str(dtype).removeprefix("torch.")}
    _write_json(directory / CONFIG_FILE, document)
    if isinstance(config, LlamaConfig):
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        _write_json(directory / GENERATION_FILE, {key: document[key] for key in keys if document[key] is not None})
    elif isinstance(config, Seq2SeqConfig):
        _write_json(directory / GENERATION_FILE, config.generation_to_json())
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors_of(module).items()}
    save_file(_to_file(config, tensors), directory / WEIGHTS_FILE, metadata={"format": "pt"})


def _write_json(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


__all__ = [
    "ClassifierConfig",
    "LlamaConfig",
    "LoadedModel",
    "Module",
    "OnBytes",
    "build",
    "check_values",
    "check_weights",
    "empty",
    "load",
    "read_file",
    "read_weights",
    "save",
    "weight_files",
]

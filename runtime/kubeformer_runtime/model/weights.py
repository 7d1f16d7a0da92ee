"""Weights in and out of a model directory: safetensors, whole or sharded, under Llama's names.

loaded = load("/models/spam", torch.float32, "cpu")     # LoadedModel: config and weights by name
module = loaded.module()                                # a Llama, Seq2Seq, ModernBert ... in evaluation mode
save("/models/new", module)                             # config.json, generation_config.json, model.safetensors
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kubeformer.contract.names import Reason
from kubeformer_runtime.model.classifier import Classifier
from kubeformer_runtime.model.config import (
    CONFIG_FILE,
    GENERATION_FILE,
    ClassifierConfig,
    LlamaConfig,
    ModelConfig,
    read_config,
    read_json,
)
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.gpt2 import from_gpt2, name_in_file, to_gpt2
from kubeformer_runtime.model.llama import Llama
from kubeformer_runtime.model.modern_bert import ModernBert
from kubeformer_runtime.model.modern_bert_config import ModernBertConfig
from kubeformer_runtime.model.seq2seq import Seq2Seq, from_file
from kubeformer_runtime.model.seq2seq_config import Seq2SeqConfig

Module: TypeAlias = Llama | Seq2Seq | ModernBert | Classifier
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
OnBytes = Callable[[int], None]
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
    weights = read_weights(directory, dtype, device, on_bytes)
    if isinstance(config, LlamaConfig):
        if config.family == "gpt2":
            weights = from_gpt2(weights)
        if config.tied_embeddings:
            weights.pop(HEAD, None)
        # Old exports carry the rotary frequencies as a tensor; they follow from config.json.
        weights = {name: tensor for name, tensor in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    elif isinstance(config, Seq2SeqConfig):
        weights = from_file(weights, config)
    check_weights(config, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    check_values(weights)
    return LoadedModel(Path(directory), config, weights)


def read_weights(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    on_bytes: OnBytes | None = None,
) -> dict[str, Tensor]:
    """Reads model.safetensors, or the shards that model.safetensors.index.json names.

    Floating-point tensors become `dtype` (None: as stored) one at a time, so memory never holds two copies
    of the whole model. `on_bytes` hears the size of each as it is read.

    Raises:
        ModelError: no weights (reason ModelNotFound), or a file that is not safetensors (ModelInvalid).
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(Path(directory)):
        weights.update(read_file(path, dtype, device, on_bytes))
    return weights


def read_file(
    path: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    on_bytes: OnBytes | None = None,
) -> dict[str, Tensor]:
    """Reads one safetensors file; see read_weights."""
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors file is not a dict
                tensor = shard.get_tensor(name)
                if on_bytes is not None:
                    on_bytes(tensor.nbytes)
                weights[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    except FileNotFoundError:
        raise ModelError(f"{INDEX_FILE} names {path.name}, which is not there", Reason.MODEL_NOT_FOUND) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    return weights


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in order; raises ModelError where there is none."""
    if (directory / INDEX_FILE).is_file():
        index = read_json(directory / INDEX_FILE).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ModelError(f"{directory / INDEX_FILE} has no weight_map")
        names = sorted({str(name) for name in index.values()})
        if any("/" in name or name.startswith(".") for name in names):
            raise ModelError(f"{directory / INDEX_FILE} names files outside its directory")
        return [directory / name for name in names]
    if (directory / WEIGHTS_FILE).is_file():
        return [directory / WEIGHTS_FILE]
    if pickled := sorted(path.name for suffix in PICKLED for path in directory.glob(suffix)):
        raise ModelError(
            f"{directory} has its weights as {_some(pickled)}, a pickle, which can run code when it is read; "
            f"publish the model as {WEIGHTS_FILE}"
        )
    raise ModelError(f"{directory} has neither {WEIGHTS_FILE} nor {INDEX_FILE}", Reason.MODEL_NOT_FOUND)


def check_weights(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ModelError where names or shapes are not those of a model with this config."""
    expected = shapes_of(config)
    gpt2 = isinstance(config, LlamaConfig) and config.family == "gpt2"

    def called(name: str) -> str:
        return name_in_file(name) if gpt2 else name

    if missing := sorted(expected.keys() - shapes.keys()):
        names = sorted({called(name) for name in missing})
        raise ModelError(f"the weights lack {_some(names)}, which {CONFIG_FILE} asks for")
    if extra := sorted(shapes.keys() - expected.keys()):
        raise ModelError(f"the weights hold {_some(extra)}, which {CONFIG_FILE} does not know")
    for name, shape in expected.items():
        if shapes[name] != shape:
            within = f"{called(name)}: " if called(name) != name else ""
            raise ModelError(f"{within}{name} has shape {shapes[name]}, but {CONFIG_FILE} makes it {shape}")


def check_values(weights: Mapping[str, Tensor]) -> None:
    """Raises ModelError where a tensor does not hold numbers: integers of a quantised file, NaN, infinity."""
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ModelError(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}, not as real numbers")
        # Any NaN or infinity shows in the sum; one that is merely too large is looked at again. 20 ms for 135M weights;
        # with dtype=torch.float32 the sum of bfloat16 would take twenty times as long.
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
            raise ModelError(f"{name} holds numbers that are not finite (NaN or infinity): the file is damaged")


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model with this config has."""
    if not isinstance(config, LlamaConfig):
        try:
            with _Unfilled():
                return {name: tuple(tensor.shape) for name, tensor in tensors_of(empty(config)).items()}
        except RuntimeError:
            raise ModelError(f"{CONFIG_FILE} describes a model that is larger than any memory") from None
    wide, inner = config.heads * config.head_width, config.key_value_heads * config.head_width
    layer_norm = config.norm == "LayerNorm"
    shapes: dict[str, tuple[int, ...]] = {}

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
    """A freshly initialised module. `dropout` is a Llama's; the others have it in their configs."""
    match config:
        case LlamaConfig():
            return Llama(config, dropout)
        case Seq2SeqConfig():
            return Seq2Seq(config)
        case ModernBertConfig():
            return ModernBert(config)
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
    if isinstance(config, LlamaConfig) and config.family == "gpt2":
        tensors = to_gpt2(tensors, config.layers)
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def _write_json(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


__all__ = ["ClassifierConfig", "LlamaConfig", "LoadedModel", "build", "check_weights", "empty", "load", "save"]

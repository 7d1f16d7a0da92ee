"""LoRA adapters in PEFT's layout: read, checked, and applied to some rows of a step.

    adapter = read_adapter("/models/law", config)      # LoraAdapter: A, B and scale for each layer and module
    runner.add_adapter("law@1", adapter)

An adapter changes a linear layer y = W·x into W·x + scale · B·A·x. W stays one matrix for all rows; the second part
is added to the rows whose sequence asked for it, so rows of many adapters and of none share a step. What an
adapter asks for and nobody here computes is refused by name. Source: https://arxiv.org/abs/2106.09685; names as
in PEFT's LoraConfig. Shapes: N rows, I in, O out, R rank.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kubeformer.contract.names import Reason
from kubeformer_runtime.model import gpt2
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.layers import interleave
from kubeformer_runtime.model.reading import Fields, read_json
from kubeformer_runtime.model.weights import check_values, read_file, shapes_of

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUT = ("self_attn.o_proj",)
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight")
LAYER = re.compile(r"(?:model\.layers|transformer\.h)\.(?P<layer>\d+)\.(?P<part>.+)")
# Fields of adapter_config.json that say nothing about the result, or that are read below.
KNOWN = frozenset(
    {
        *("r", "lora_alpha", "use_rslora", "target_modules", "peft_type", "task_type", "bias", "init_lora_weights"),
        *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version"),
        *("fan_in_fan_out", "layers_to_transform", "layers_pattern", "exclude_modules", "megatron_core"),
        *("qalora_group_size", "runtime_config"),
    }
)
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # the first letters of such init_lora_weights


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One linear layer's part: scale · B·A, float32 on the CPU."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """`modules[layer, "self_attn.q_proj"]` and so on, under Llama's names whatever the family; few or many of them."""

    rank: int
    modules: dict[tuple[int, str], LoraWeights]


def read_adapter(directory: str | Path, config: LlamaConfig) -> LoraAdapter:
    """Reads DIRECTORY/adapter_config.json and adapter_model.safetensors, for a base model with this config.

    Raises:
        ModelError: no such directory or file (reason ModelNotFound); damaged, made for another model, or in need of
            something that is not supported (ModelInvalid).
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelError(f"there is no adapter directory {directory}", Reason.MODEL_NOT_FOUND)
    fields = Fields(ADAPTER_CONFIG, read_json(directory / ADAPTER_CONFIG))
    rank, scale = _read_config(fields)
    path = directory / ADAPTER_WEIGHTS
    if not path.is_file():
        if (directory / "adapter_model.bin").is_file():
            raise ModelError(
                f"{directory} has its weights as adapter_model.bin, a pickle, which can run code when it is read; "
                f"publish the adapter as {ADAPTER_WEIGHTS}"
            )
        raise ModelError(f"{directory} has no {ADAPTER_WEIGHTS}", Reason.MODEL_NOT_FOUND)
    tensors = read_file(path, torch.float32)
    check_values(tensors)
    return LoraAdapter(rank, _modules(tensors, config, rank, scale, fields))


def _read_config(fields: Fields) -> tuple[int, float]:
    """Rank and scale."""
    refused = f"{fields.file}: %s is %r, which is not supported"
    for name, only in (("peft_type", "LORA"), ("task_type", "CAUSAL_LM"), ("bias", "none")):
        if fields.text(name, only) != only:
            raise ModelError(f"{refused % (name, fields.document[name])}; it has to be {only!r}")
    start = fields.document.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
        raise ModelError(
            f"{refused % ('init_lora_weights', start)}: such an adapter belongs to altered weights of its base; "
            "convert it to a plain LoRA adapter"
        )
    for name, value in fields.document.items():
        if name not in KNOWN and value not in (None, False, 0, "", [], {}):
            raise ModelError(f"{refused % (name, value)}; leave it out of the adapter")
    rank, alpha = fields.integer("r", 8), fields.number("lora_alpha", 8)
    return rank, alpha / (rank**0.5 if fields.flag("use_rslora", False) else rank)


def _modules(
    tensors: dict[str, Tensor], config: LlamaConfig, rank: int, scale: float, fields: Fields
) -> dict[tuple[int, str], LoraWeights]:
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (match := TENSOR.fullmatch(name)) is None:
            raise ModelError(f"{ADAPTER_WEIGHTS} holds {name}, which is no LoRA matrix of a linear layer")
        pairs.setdefault(match["module"], {})[match["side"]] = tensor
    shapes = shapes_of(config)
    found: dict[tuple[int, str], LoraWeights] = {}
    for module, pair in pairs.items():
        match = LAYER.fullmatch(module)
        parts: tuple[str, ...] = ()
        if match is not None:
            parts = gpt2.PARTS.get(match["part"], ()) if config.family == "gpt2" else (match["part"],)
        prefix = "" if match is None else f"model.layers.{match['layer']}."
        sizes = [shapes.get(f"{prefix}{part}.weight", ()) for part in parts]
        if match is None or not sizes or any(len(size) != 2 for size in sizes):
            raise ModelError(f"{ADAPTER_WEIGHTS} changes {module}, which is no linear layer of this model's layers")
        for side, wanted in (("A", (rank, sizes[0][1])), ("B", (sum(size[0] for size in sizes), rank))):
            if side not in pair:
                raise ModelError(f"{ADAPTER_WEIGHTS} lacks lora_{side} of {module}")
            if tuple(pair[side].shape) != wanted:
                raise ModelError(
                    f"{ADAPTER_WEIGHTS}: lora_{side} of {module} has shape {tuple(pair[side].shape)}, but rank {rank} "
                    f"and the base model make it {wanted}; is it made for another model?"
                )
        row = 0
        for part, size in zip(parts, sizes, strict=True):
            found[int(match["layer"]), part] = LoraWeights(pair["A"], pair["B"][row : row + size[0]], scale)
            row += size[0]
    _check_targets(fields, {module.rsplit(".", 1)[-1] for module in pairs})
    return found


def _check_targets(fields: Fields, changed: set[str]) -> None:
    """Each module that adapter_config.json names, if models here know it, has to be among what the file changes."""
    names = fields.document.get("target_modules")
    known = {name.rsplit(".", 1)[-1] for parts in gpt2.PARTS.values() for name in parts} | {"gate_proj"}
    targets = {str(name).rsplit(".", 1)[-1] for name in names} if isinstance(names, list) else set()
    if missing := sorted((targets & known) - changed):
        raise ModelError(
            f"{fields.file}: target_modules names {missing[0]}, but {ADAPTER_WEIGHTS} holds nothing for it"
        )
    if not changed:
        raise ModelError(f"{ADAPTER_WEIGHTS} holds no matrices")


@dataclass(frozen=True, slots=True)
class LoraLinear:
    """What an adapter adds to one (fused) matrix; B has the scale in it."""

    a_RI: Tensor
    b_OR: Tensor


@dataclass(frozen=True, slots=True)
class LayerAdapter:
    """An adapter's part of one layer, over the matrices as runners fuse them; None: unchanged."""

    qkv: LoraLinear | None
    output: LoraLinear | None
    gate_up: LoraLinear | None
    down: LoraLinear | None


def layer_adapters(
    adapter: LoraAdapter, config: LlamaConfig, dtype: torch.dtype, device: torch.device
) -> list[LayerAdapter]:
    """One a layer. Rows of q and k are interleaved as the runner's weights are (model.layers.interleave)."""
    up = ("mlp.gate_proj", "mlp.up_proj") if config.activation == "SwiGLU" else ("mlp.up_proj",)
    shapes = shapes_of(config)

    def fused(layer: int, names: Sequence[str]) -> LoraLinear | None:
        rows = [shapes[f"model.layers.{layer}.{name}.weight"][0] for name in names]
        parts = [adapter.modules.get((layer, name)) for name in names]
        there = [part for part in parts if part is not None]
        if not there:
            return None
        b_OR = torch.zeros(sum(rows), adapter.rank * len(there))
        row = column = 0
        for name, part, count in zip(names, parts, rows, strict=True):
            if part is not None:
                turned = config.positions == "Rotary" and name in QKV[:2]
                b = interleave(part.b_OR, config.head_width) if turned else part.b_OR
                b_OR[row : row + count, column : column + adapter.rank] = b * part.scale
                column += adapter.rank
            row += count
        a_RI = torch.cat([part.a_RI for part in there])
        return LoraLinear(a_RI.to(device, dtype), b_OR.to(device, dtype))

    return [
        LayerAdapter(fused(index, QKV), fused(index, OUTPUT), fused(index, up), fused(index, ("mlp.down_proj",)))
        for index in range(config.layers)
    ]


def add_adapters(y_NO: Tensor, x_NI: Tensor, parts: Sequence[tuple[LoraLinear | None, Tensor | None]]) -> Tensor:
    """Adds to y, in place, each adapter's part of its rows (None: all rows); gives y back."""
    for lora, rows in parts:
        if lora is None:
            continue
        if rows is None:
            y_NO += (x_NI @ lora.a_RI.T) @ lora.b_OR.T
        else:
            y_NO.index_add_(0, rows, (x_NI[rows] @ lora.a_RI.T) @ lora.b_OR.T)
    return y_NO

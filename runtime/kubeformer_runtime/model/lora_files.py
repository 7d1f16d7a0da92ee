"""LoRA adapters in PEFT's layout: adapter_config.json beside adapter_model.safetensors, in and out.

    write_adapter("/models/law", network, base="/models/base")      # after lora.add_lora and training
    adapter = read_adapter("/models/law", config)                   # A, B and scale of each layer's projections
    copy_adapter(network, adapter)                                  # to train on, or to merge

`peft`, vLLM and our engine read what is written. What an adapter asks for and nobody here computes is refused by
name. Names as in PEFT's LoraConfig; source: https://arxiv.org/abs/2106.09685. Shapes: I in, O out, R rank.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kubeformer.contract.names import Reason
from kubeformer_runtime.model import gpt2
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.lora import LoraLinear, lora_layers
from kubeformer_runtime.model.reading import Fields, read_json
from kubeformer_runtime.model.weights import check_values, read_file, shapes_of

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight")
LAYER = re.compile(r"(?:model\.layers|transformer\.h)\.(?P<layer>\d+)\.(?P<part>.+)")
Matrices = dict[str, tuple[Tensor, Tensor]]  # A (R, I) and B (O, R) by the name of the layer
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


def write_adapter(directory: str | Path, network: nn.Module, base: str, revision: str | None = None) -> None:
    """Writes the adapters of a decoder into DIRECTORY, which exists; float32.

    GPT-2 keeps q, k and v as one matrix: their three adapters become one of three times the rank, with B block by
    block, and those of other layers are filled up with zeros to the same rank; the scale stays what it was.

    Args:
        network: a decoder after `lora.add_lora`.
        base: where the base model is: a directory, or its name on a hub; with its revision.

    Raises:
        ModelError: the network has no adapters, or is none that PEFT and the engines serve adapters of.
    """
    config = getattr(network, "config", None)
    if not isinstance(config, LlamaConfig):
        raise ModelError("an adapter in PEFT's layout belongs to a language model; publish the merged model instead")
    layers = dict(lora_layers(network))
    if not layers:
        raise ModelError("the network has no adapters to write")
    lora = next(iter(layers.values()))
    rank, alpha = lora.lora_A.shape[0], lora.scale * lora.lora_A.shape[0]
    matrices = {name: (layer.lora_A.detach(), layer.lora_B.detach()) for name, layer in layers.items()}
    if config.family == "gpt2":
        matrices, wide = _as_gpt2(matrices, rank)
        rank, alpha = wide, lora.scale * wide
    tensors = {
        f"base_model.model.{name}.lora_{side}.weight": tensor.to("cpu", torch.float32).contiguous()
        for name, pair in matrices.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
    document = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(_targets(config, matrices)),
        "bias": "none",
        "fan_in_fan_out": config.family == "gpt2",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    directory = Path(directory)
    (directory / ADAPTER_CONFIG).write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _targets(config: LlamaConfig, matrices: Matrices) -> set[str]:
    """Ends of names, as PEFT matches them; two parts of a GPT-2 layer are called c_proj."""
    parts = {match["part"] for name in matrices if (match := LAYER.fullmatch(name))}
    return parts if config.family == "gpt2" else {part.rsplit(".", 1)[-1] for part in parts}


def _as_gpt2(matrices: Matrices, rank: int) -> tuple[Matrices, int]:
    """The adapters under GPT-2's names, and the rank that all of them have."""
    grouped: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, pair in matrices.items():
        match = LAYER.fullmatch(name)
        assert match is not None  # a decoder adapts layers alone
        part = next(theirs for theirs, ours in gpt2.PARTS.items() if match["part"] in ours)
        grouped.setdefault(f"{gpt2.PREFIX}h.{match['layer']}.{part}", {})[match["part"]] = pair
    wide = rank * max(map(len, grouped.values()))
    found: Matrices = {}
    for name, pairs in grouped.items():
        ours = gpt2.PARTS[name.split(".", 3)[3]]
        ordered = [pairs[part] for part in ours]  # add_lora takes q, k and v together
        a_RI = torch.cat([a for a, _ in ordered])
        b_OR = torch.block_diag(*(b for _, b in ordered))  # type: ignore[no-untyped-call]
        missing = wide - a_RI.shape[0]
        found[name] = (nn.functional.pad(a_RI, (0, 0, 0, missing)), nn.functional.pad(b_OR, (0, missing)))
    return found, wide


def copy_adapter(network: nn.Module, adapter: LoraAdapter) -> None:
    """Puts what was read into the adapters of a decoder, to train on or to merge; projections it lacks begin anew.

    Raises:
        ModelError: the network's adapters have another rank, or are not where this one has its own.
    """
    layers = {(int(match["layer"]), match["part"]): layer for match, layer in _numbered(network)}
    for (number, part), weights in adapter.modules.items():
        layer = layers.get((number, part))
        if layer is None:
            raise ModelError(f"the adapter changes {part}, which lora.targets of this job leaves as it is")
        if layer.lora_A.shape != weights.a_RI.shape:
            raise ModelError(f"the adapter has rank {weights.a_RI.shape[0]}; set lora.rank to it")
        with torch.no_grad():
            layer.lora_A.copy_(weights.a_RI)
            layer.lora_B.copy_(weights.b_OR * (weights.scale / layer.scale))


def _numbered(network: nn.Module) -> Iterator[tuple[re.Match[str], LoraLinear]]:
    for name, layer in lora_layers(network):
        if (match := LAYER.fullmatch(name)) is not None:
            yield match, layer


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

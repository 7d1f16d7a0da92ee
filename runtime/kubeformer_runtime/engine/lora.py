"""LoRA adapters applied to some rows of a step; how they are read from PEFT's layout: model/lora_files.py.

    adapter = read_adapter("/models/law", config)      # LoraAdapter: A, B and scale for each layer and module
    runner.add_adapter("law@1", adapter)

An adapter changes a linear layer y = W·x into W·x + scale · B·A·x. W stays one matrix for all rows; the second part
is added to the rows whose sequence asked for it, so rows of many adapters and of none share a step.
Source: https://arxiv.org/abs/2106.09685. Shapes: N rows, I in, O out, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.layers import interleave
from kubeformer_runtime.model.lora_files import LoraAdapter, LoraWeights, read_adapter
from kubeformer_runtime.model.weights import shapes_of

__all__ = ["LayerAdapter", "LoraAdapter", "LoraLinear", "LoraWeights", "add_adapters", "layer_adapters", "read_adapter"]
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUT = ("self_attn.o_proj",)


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

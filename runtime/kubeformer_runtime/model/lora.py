"""LoRA by module swap: each chosen nn.Linear of a network becomes one with a small trainable part beside it.

    add_lora(network, Lora(rank=16, alpha=32, targets=("Attention",)), base_weights="NF4")   # in place
    ... train: what has requires_grad is A and B alone ...
    weights = merged_weights(network)                   # as the network's own state dict, W + scale · B·A

y = W·x + b becomes y = W·x + b + scale · B·(A·x), scale = alpha / rank. A begins random, B at zero, so the network
begins as it was. W is frozen, in float or in few bits (quantized.py). Works for every network of ours: layers are
found by the names of their projections. Files in PEFT's layout: lora_files.py.
Source: https://arxiv.org/abs/2106.09685. Shapes: I in, O out, R rank, X any leading dimensions.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.quantized import Quantization, QuantizedLinear, quantize

Target = Literal["Attention", "MLP"]
# The projections of a layer by the ends of their names, in every network of ours.
PROJECTIONS: Mapping[Target, frozenset[str]] = {
    "Attention": frozenset(
        {"q_proj", "k_proj", "v_proj", "o_proj", "query", "key", "value", "out", "attn.Wqkv", "attn.Wo"}
    ),
    "MLP": frozenset({"gate_proj", "up_proj", "down_proj", "up", "down", "mlp.Wi", "mlp.Wo"}),
}


@dataclass(frozen=True, slots=True)
class Lora:
    """What is trained beside the frozen weights."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0  # of what A reads, while training
    targets: tuple[Target, ...] = ("Attention",)

    @property
    def scale(self) -> float:
        """What B·A is multiplied by."""
        return self.alpha / self.rank

    def check(self) -> None:
        """Raises ModelError where the numbers make no sense."""
        if self.rank < 1:
            raise ModelError(f"lora.rank is {self.rank}; it has to be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"lora.dropout is {self.dropout}; it has to be at least 0 and below 1")
        if not self.targets:
            raise ModelError("lora.targets is empty; name Attention, MLP or both")


class LoraLinear(nn.Module):
    """A frozen linear layer and its trainable low-rank part."""

    def __init__(self, base: nn.Linear | QuantizedLinear, lora: Lora) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, lora.scale, lora.dropout
        device = next(iter([*base.parameters(), *base.buffers()])).device
        self.lora_A = nn.Parameter(torch.empty(lora.rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, lora.rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as nn.Linear and PEFT begin
        self.merged = False

    def forward(self, x_XI: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        y_XO: Tensor = self.base(x_XI)
        if self.merged:
            return y_XO
        middle_XR = F.linear(F.dropout(x_XI, self.dropout, self.training), self.lora_A) * self.scale
        return y_XO + F.linear(middle_XR, self.lora_B)

    def change(self) -> Tensor:
        """What this adds to the weight: scale · B·A, float32 (O, I)."""
        with torch.no_grad():
            return self.scale * (self.lora_B.float() @ self.lora_A.float())

    def merge(self) -> None:
        """Adds the low-rank part into the weight, so that the layer costs what it cost without; trains no more.

        Raises:
            ModelError: the weight is quantised, and rounding it again would lose what was learned.
        """
        self._shift(1.0, merged=True)

    def unmerge(self) -> None:
        """Takes the low-rank part out of the weight again: what it was, within rounding."""
        self._shift(-1.0, merged=False)

    def _shift(self, sign: float, merged: bool) -> None:
        if isinstance(self.base, QuantizedLinear):
            raise ModelError("an adapter cannot be merged into quantised weights; merge it into those of the base")
        if self.merged != merged:
            with torch.no_grad():
                self.base.weight.add_(self.change().to(self.base.weight.dtype), alpha=sign)
            self.merged = merged


def add_lora(network: nn.Module, lora: Lora, base_weights: Literal["Float"] | Quantization = "Float") -> None:
    """Freezes the network and puts adapters beside the projections of its layers, in place.

    With `base_weights` other than Float all projections of all layers are quantised, with an adapter or without.
    Random numbers come from torch's generator: seed it before.

    Raises:
        ModelError: the network has no such projection, or the settings make no sense.
    """
    lora.check()
    wanted = frozenset[str]().union(*(PROJECTIONS[target] for target in lora.targets))
    projections = frozenset[str]().union(*PROJECTIONS.values())
    network.requires_grad_(False)
    found = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and _ends(name, projections)
    ]
    if not any(_ends(name, wanted) for name, _ in found):
        raise ModelError(f"lora.targets is {', '.join(lora.targets)}, of which this network has no linear layer")
    for name, linear in found:
        base = linear if base_weights == "Float" else quantize(linear, base_weights)
        new = LoraLinear(base, lora) if _ends(name, wanted) else base
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, new.train(linear.training))


def _ends(name: str, ends: frozenset[str]) -> bool:
    return any(f".{name}".endswith(f".{end}") for end in ends)


def lora_layers(network: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted layers by the names that they had before, in the network's order."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, LoraLinear))


def has_lora(network: nn.Module) -> bool:
    """Whether `add_lora` was here."""
    return next(lora_layers(network), None) is not None


def merged_weights(network: nn.Module, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dict of the network without adapters, what they learned added to their weights.

    Args:
        network: after `add_lora`; it stays as it is. Tensors that no adapter changes are shared with it.
        base: the weights that were quantised, in float and under the network's names. The result is then what
            base and adapter give together where the adapter is served.

    Raises:
        ModelError: weights are quantised, and `base` does not hold them.
    """
    found = {
        name.replace(".base.", "."): tensor.detach()
        for name, tensor in network.state_dict().items()
        if not name.endswith((".lora_A", ".lora_B"))
    }
    for name, module in network.named_modules():
        if isinstance(module, QuantizedLinear):
            plain = name.removesuffix(".base")
            for kept, _ in module.named_buffers():
                if kept != "bias":
                    del found[f"{plain}.{kept}"]
            if base is None or f"{plain}.weight" not in base:
                raise ModelError(f"{plain} is quantised: its weight has to come from the base model")
            found[f"{plain}.weight"] = base[f"{plain}.weight"]
    for name, module in lora_layers(network):
        if not module.merged:
            weight = found[f"{name}.weight"]
            found[f"{name}.weight"] = (weight.float() + module.change().to(weight.device)).to(weight.dtype)
    return found

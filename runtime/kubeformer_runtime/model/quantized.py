"""Frozen linear layers in few bits, for training adapters beside them: int8 and NF4, in plain PyTorch.

    layer = quantize(linear, "NF4")        # nn.Linear -> NF4Linear: about 4.1 bits a weight instead of 32
    y = layer(x)                           # as F.linear(x, layer.dequantized(torch.float32), layer.bias)

The gradient flows to the input, exactly that of the dequantised weights; the weights themselves get none. The matrix
in full width lives for the length of one product, forwards and again backwards; nothing of it is kept between.

Int8: one scale a row, the row's largest absolute value / 127. NF4: blocks of 64 weights in the order of memory, each
divided by its largest absolute value and rounded to the nearest of 16 levels, the quantiles of a normal distribution;
with double quantisation those largest values become int8 themselves, in groups of 256 around their mean.
Source: QLoRA, https://arxiv.org/abs/2305.14314 (section 3; the levels: appendix E).
Shapes: O out, I in, P pairs of weights (one byte each), N blocks, M groups of blocks, X any leading dimensions.
"""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kubeformer_runtime.model.errors import ModelError

Quantization = Literal["Int8", "NF4"]
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
BLOCK = 64  # weights that share a largest value
GROUP = 256  # largest values that share a step, where they are quantised too
LARGEST_GAP = max(high - low for low, high in pairwise(LEVELS))


def quantize_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (O, I) and scales (O,) whose product differs from the weight by half a scale at most."""
    scale_O = (weight_OI.abs().amax(dim=1).float() / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight_OI.float() / scale_O[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale_O


def quantize_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of two levels each (P,), the first in the high half, and each block's largest absolute value (N,).

    A weight comes back within its block's largest value times half the widest gap between levels (0.152). Blocks run
    over the flattened weight; the last one is filled up with zeros.
    """
    flat = F.pad(weight.flatten().float(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    absmax_N = flat.abs().amax(dim=1)
    levels = torch.tensor(LEVELS, device=weight.device)
    shares = flat / absmax_N.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    code = torch.bucketize(shares, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return code[:, 0] << 4 | code[:, 1], absmax_N


def dequantize_nf4(code_P: Tensor, absmax_N: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight again, in `dtype`."""
    levels = torch.tensor(LEVELS, device=code_P.device)
    pairs = torch.stack((levels.repeat_interleave(16), levels.repeat(16)), dim=1)  # what each byte stands for
    flat = F.embedding(code_P.int(), pairs).view(-1, BLOCK) * absmax_N[:, None]
    return flat.view(-1)[: shape[0] * shape[1]].view(shape).to(dtype)


def quantize_absmax(absmax_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest values as int8 (N,), a step a group (M,) and the mean of all: within half a step of what they were."""
    mean = absmax_N.mean()
    groups = F.pad(absmax_N - mean, (0, -len(absmax_N) % GROUP)).view(-1, GROUP)
    step_M = (groups.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    code_N = (groups / step_M[:, None]).round_().to(torch.int8).view(-1)[: len(absmax_N)].clone()
    return code_N, step_M, mean


def dequantize_absmax(code_N: Tensor, step_M: Tensor, mean: Tensor) -> Tensor:
    """The largest values again, float32 (N,)."""
    absmax_N: Tensor = code_N * step_M.repeat_interleave(GROUP)[: len(code_N)] + mean
    return absmax_N


class _Int8Product(torch.autograd.Function):
    """x_XI · Wᵀ with W = integers times scales; saves the integers alone."""

    @staticmethod
    def forward(ctx: Any, x_XI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
        ctx.save_for_backward(weight_OI, scale_O)
        return F.linear(x_XI, weight_OI.to(x_XI.dtype)) * scale_O.to(x_XI.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight_OI, scale_O = ctx.saved_tensors
        gradient_XO = gradients[0]
        return (gradient_XO * scale_O.to(gradient_XO.dtype)) @ weight_OI.to(gradient_XO.dtype), None, None


class _NF4Product(torch.autograd.Function):
    """x_XI · Wᵀ with W in NF4; `absmax` are the tensors that the largest values come from, one or three."""

    @staticmethod
    def forward(ctx: Any, x_XI: Tensor, shape: tuple[int, int], code_P: Tensor, *absmax: Tensor) -> Tensor:
        ctx.save_for_backward(code_P, *absmax)
        ctx.shape = shape
        return F.linear(x_XI, dequantize_nf4(code_P, _absmax(absmax), shape, x_XI.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        code_P, *absmax = ctx.saved_tensors
        gradient_XO = gradients[0]
        weight_OI = dequantize_nf4(code_P, _absmax(tuple(absmax)), ctx.shape, gradient_XO.dtype)
        return (gradient_XO @ weight_OI, None, None, *(None for _ in absmax))


def _absmax(tensors: tuple[Tensor, ...]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else dequantize_absmax(*tensors)


class QuantizedLinear(nn.Module, ABC):
    """A frozen linear layer; subclasses say how its weight is kept. Its tensors are buffers: nothing here trains."""

    def __init__(self, shape: tuple[int, int], bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x_XI: Tensor) -> Tensor:
        """(..., I) to (..., O), in the dtype of the input or that of autocast."""
        kind = x_XI.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_XI.dtype
        y_XO, bias = self.product(x_XI.to(dtype)), self._buffers["bias"]
        return y_XO if bias is None else y_XO + bias.to(dtype)

    @abstractmethod
    def product(self, x_XI: Tensor) -> Tensor:
        """The input times the weight's transpose, in the input's dtype."""

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) that this layer stands for."""


class Int8Linear(QuantizedLinear):
    """One byte a weight and one float32 a row."""

    def __init__(self, weight_OI: Tensor, bias: Tensor | None) -> None:
        super().__init__((weight_OI.shape[0], weight_OI.shape[1]), bias)
        code_OI, scale_O = quantize_int8(weight_OI)
        self.register_buffer("code", code_OI)
        self.register_buffer("scale", scale_O)

    def product(self, x_XI: Tensor) -> Tensor:
        """See QuantizedLinear."""
        y: Tensor = _Int8Product.apply(x_XI, self.get_buffer("code"), self.get_buffer("scale"))  # type: ignore[no-untyped-call]
        return y

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """See QuantizedLinear."""
        return (self.get_buffer("code") * self.get_buffer("scale")[:, None]).to(dtype)


class NF4Linear(QuantizedLinear):
    """Half a byte a weight; with `double` 8.1 bits a block of 64 beside it, without 32."""

    def __init__(self, weight_OI: Tensor, bias: Tensor | None, double: bool = True) -> None:
        super().__init__((weight_OI.shape[0], weight_OI.shape[1]), bias)
        code_P, absmax_N = quantize_nf4(weight_OI)
        self.register_buffer("code", code_P)
        kept = quantize_absmax(absmax_N) if double else (absmax_N,)
        self._names = ("absmax", "absmax_step", "absmax_mean")[: len(kept)]
        for name, tensor in zip(self._names, kept, strict=True):
            self.register_buffer(name, tensor)

    def _kept(self) -> tuple[Tensor, ...]:
        return tuple(self.get_buffer(name) for name in self._names)

    def product(self, x_XI: Tensor) -> Tensor:
        """See QuantizedLinear."""
        shape = (self.out_features, self.in_features)
        y: Tensor = _NF4Product.apply(x_XI, shape, self.get_buffer("code"), *self._kept())  # type: ignore[no-untyped-call]
        return y

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """See QuantizedLinear."""
        shape = (self.out_features, self.in_features)
        return dequantize_nf4(self.get_buffer("code"), _absmax(self._kept()), shape, dtype)


def quantize(linear: nn.Linear, kind: Quantization, double: bool = True) -> QuantizedLinear:
    """The layer in few bits; `double` (NF4 alone): largest values are quantised too.

    Raises:
        ModelError: the weight holds NaN or infinity, which no scale can carry.
    """
    weight_OI = linear.weight.detach()
    if not bool(weight_OI.isfinite().all()):
        raise ModelError("a weight that is to be quantised holds NaN or infinity: the base model is damaged")
    if kind == "Int8":
        return Int8Linear(weight_OI, linear.bias)
    return NF4Linear(weight_OI, linear.bias, double)

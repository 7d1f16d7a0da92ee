"""Training: the C++ kernels between a decoder's matrix products, as methods that take tensors (csrc/training).

    kernels = load_training_kernels()   # None where this machine cannot have them
    kernels.norm_forward(x_ND, None, x_ND, weight_D, h_ND, scale_N, 1e-5)

Matrices are float32 or bfloat16, contiguous, on the CPU; what is written has to exist already. Everything runs in
PyTorch's threads. The layout of arguments mirrors csrc/training/training.cpp.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from kubeformer_runtime.kernels.library import (
    TRAINING,
    LibraryUnavailableError,
    choose_variant,
    cpu_flags,
    load_library,
)

INT, LONG, FLOAT, POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
LANES = 16  # numbers of a register; widths are multiples of it
HEAD_MULTIPLE = 32
BLOCK = 48  # queries or keys that attention takes at once; a multiple of 6 (rows of a tile) and of 2

SIGNATURES: dict[str, list[type]] = {
    "norm_forward": [INT, *[POINTER] * 6, LONG, LONG, FLOAT],
    "norm_backward": [INT, *[POINTER] * 7, LONG, LONG, FLOAT],
    "rotate": [INT, POINTER, LONG, POINTER, POINTER, *[LONG] * 4, FLOAT],
    "swiglu_forward": [INT, POINTER, POINTER, LONG, LONG],
    "swiglu_backward": [INT, POINTER, POINTER, LONG, LONG],
    "cross_entropy": [INT, *[POINTER] * 4, LONG, LONG, INT],
    "embedding_backward": [*[POINTER] * 3, LONG, LONG],
    "accumulate": [INT, POINTER, POINTER, LONG, FLOAT],
    "attention_forward": [INT, *[POINTER] * 4, *[LONG] * 6],
    "attention_backward": [INT, *[POINTER] * 6, *[LONG] * 6],
    "adamw": [*[POINTER] * 5, LONG, POINTER],
}


class AdamWStruct(ctypes.Structure):
    """AdamW of csrc/training/pointwise.h."""

    _fields_ = [
        (name, FLOAT)
        for name in (
            *("gradient_factor", "decay", "beta1", "beta2"),
            *("mean_correction", "root_correction", "epsilon", "learning_rate"),
        )
    ]


@dataclass(frozen=True, slots=True)
class Heads:
    """How the columns of qkv are cut: H heads of q, K of k, K of v, each W wide."""

    heads: int
    key_value_heads: int
    width: int


class TrainingKernels:
    """The functions of the library. `half` is the type of the matrices of a call, read off a tensor."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {}
        for name, arguments in SIGNATURES.items():
            function = getattr(library, f"kt_{name}")
            function.argtypes, function.restype = arguments, None
            self._functions[name] = function

    def norm_forward(
        self,
        x_ND: Tensor,
        y_ND: Tensor | None,
        sum_ND: Tensor,
        weight_D: Tensor,
        h_ND: Tensor,
        scale_N: Tensor,
        epsilon: float,
    ) -> None:
        """sum = x + y, h = RMSNorm(sum) · weight, scale = 1 / root mean square. x, sum, weight, scale: float32."""
        n, d = x_ND.shape
        pointers = (x_ND, y_ND, sum_ND, weight_D, h_ND, scale_N)
        self._functions["norm_forward"](_half(h_ND), *map(_at, pointers), n, d, epsilon)

    def norm_backward(
        self,
        dh_ND: Tensor,
        x_ND: Tensor,
        weight_D: Tensor,
        scale_N: Tensor,
        dx_ND: Tensor,
        narrow_ND: Tensor | None,
        dweight_D: Tensor,
        factor: float = 1.0,
    ) -> None:
        """Adds the gradient of x to dx, of the weight to dweight; `narrow` gets dx in dh's type. dh counts `factor`."""
        n, d = x_ND.shape
        pointers = (dh_ND, x_ND, weight_D, scale_N, dx_ND, narrow_ND, dweight_D)
        self._functions["norm_backward"](_half(dh_ND), *map(_at, pointers), n, d, factor)

    def rotate(self, qkv_NC: Tensor, rope: tuple[Tensor, Tensor], tokens: int, heads: Heads, sign: float) -> None:
        """Rotary positions on q and k, in place; cosine and sine are (T, W / 2); sign -1 for gradients."""
        n, columns = qkv_NC.shape
        turned = heads.heads + heads.key_value_heads
        cosine, sine = map(_at, rope)
        self._functions["rotate"](
            _half(qkv_NC), _at(qkv_NC), columns, cosine, sine, n, tokens, turned, heads.width, sign
        )

    def swiglu_forward(self, gate_up_N2F: Tensor, a_NF: Tensor) -> None:
        """a = silu(gate) · up."""
        self._functions["swiglu_forward"](_half(a_NF), _at(gate_up_N2F), _at(a_NF), *a_NF.shape)

    def swiglu_backward(self, da_NF: Tensor, gate_up_N2F: Tensor) -> None:
        """Gradients of gate and up take their place."""
        self._functions["swiglu_backward"](_half(da_NF), _at(da_NF), _at(gate_up_N2F), *da_NF.shape)

    def cross_entropy(self, logit_CV: Tensor, target_C: Tensor, sums: Tensor, backward: bool) -> None:
        """Adds loss and number of right answers to sums (2, float64); logits become their gradient."""
        loss = sums.data_ptr()
        self._functions["cross_entropy"](
            _half(logit_CV), _at(logit_CV), _at(target_C), loss, loss + 8, *logit_CV.shape, int(backward)
        )

    def embedding_backward(self, dx_ND: Tensor, token_N: Tensor, dtable_VD: Tensor) -> None:
        """Adds each token's gradient to its row."""
        self._functions["embedding_backward"](_at(dx_ND), _at(token_N), _at(dtable_VD), *dx_ND.shape)

    def accumulate(self, sums: Tensor, addends: Tensor, factor: float = 1.0) -> None:
        """sums (float32) += addends · factor."""
        self._functions["accumulate"](_half(addends), _at(sums), _at(addends), sums.numel(), factor)

    def attention_forward(
        self, qkv_NC: Tensor, first_N: Tensor | None, out_ND: Tensor, lse_BHT: Tensor, heads: Heads
    ) -> None:
        """Causal attention; `first` (int32): the first token of the row that a token sees. See csrc attention.h."""
        b, _, t = lse_BHT.shape
        pointers = (qkv_NC, first_N, out_ND, lse_BHT)
        self._functions["attention_forward"](_half(qkv_NC), *map(_at, pointers), b, t, *_cut(heads))

    def attention_backward(
        self,
        qkv_NC: Tensor,
        first_N: Tensor | None,
        out_ND: Tensor,
        lse_BHT: Tensor,
        dout_ND: Tensor,
        dqkv_NC: Tensor,
        heads: Heads,
    ) -> None:
        """Gradients of q, k and v."""
        b, _, t = lse_BHT.shape
        pointers = (qkv_NC, first_N, out_ND, lse_BHT, dout_ND, dqkv_NC)
        self._functions["attention_backward"](_half(qkv_NC), *map(_at, pointers), b, t, *_cut(heads))

    def adamw(
        self, value: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, half: Tensor | None, step: AdamWStruct
    ) -> None:
        """One step of AdamW in one pass; `half` (bfloat16) gets the new values too."""
        pointers = (value, gradient, mean, square, half)
        self._functions["adamw"](*map(_at, pointers), value.numel(), ctypes.addressof(step))


def load_training_kernels() -> TrainingKernels | None:
    """The kernels for this CPU; None where it lacks AVX-512, or there is neither a library nor a compiler.

    Without AVX-512 PyTorch's own operators are as fast, so the trainer stays with them.
    """
    variant = choose_variant(cpu_flags())
    if not variant.name.startswith("avx512"):
        return None
    try:
        return TrainingKernels(load_library(variant.name, TRAINING))
    except LibraryUnavailableError:
        return None


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16; without them float32 is faster."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})


def _half(tensor: Tensor) -> int:
    return int(tensor.dtype == torch.bfloat16)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _cut(heads: Heads) -> tuple[int, int, int, int]:
    return heads.heads, heads.key_value_heads, heads.width, BLOCK

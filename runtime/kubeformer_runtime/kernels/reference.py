"""The kernels' arithmetic in plain PyTorch: what their tests compare with. Slow, and meant to be read.

Quantised products: weights and activations are cut into groups along k. int8 (groups of 64) is symmetric, w = s · q
with q from -127 to 127; int4 (groups of 32) has a minimum, w = s · q + m with q from 0 to 15. Scales and minima are
bfloat16, and q is chosen for the rounded ones. Activations are int8 with a float32 scale for each row and 32 of k.
Shapes: M rows, N outputs, K inputs, G groups, I inputs of a group.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kubeformer_runtime.kernels.binding import WeightType

GROUP = {WeightType.INT8: 64, WeightType.INT4: 32}
ROW_GROUP = 32


def product(kind: WeightType, x_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """x · weightᵀ in float32, after both were rounded as `kind` says."""
    if kind == WeightType.FLOAT32:
        return x_MK @ weight_NK.T
    if kind == WeightType.BFLOAT16:
        return x_MK.bfloat16().float() @ weight_NK.bfloat16().float().T
    return rounded_activations(x_MK) @ rounded_weights(kind, weight_NK).T


def rounded_activations(x_MK: Tensor) -> Tensor:
    """Activations after int8: each group divided by its largest absolute value / 127, and rounded."""
    x_MGI = _grouped(x_MK, ROW_GROUP)
    scale_MG1 = x_MGI.abs().amax(-1, keepdim=True) / 127
    inverse_MG1 = torch.where(scale_MG1 > 0, 1 / scale_MG1, 0.0)
    return (torch.round(x_MGI * inverse_MG1) * scale_MG1).flatten(1)[:, : x_MK.shape[1]]


def rounded_weights(kind: WeightType, weight_NK: Tensor) -> Tensor:
    """Weights after quantisation, as float32 (N, K)."""
    w_NGI = _grouped(weight_NK, GROUP[kind])
    if kind == WeightType.INT8:
        exact = w_NGI.abs().amax(-1, keepdim=True) / 127
        scale = exact.bfloat16().float()
        scale = torch.where(scale < exact, _next_bfloat16(scale), scale)
        quantised = torch.where(scale > 0, torch.round(w_NGI / scale), 0.0).clamp(-127, 127)
        return (quantised * scale).flatten(1)[:, : weight_NK.shape[1]]
    low, high = w_NGI.amin(-1, keepdim=True), w_NGI.amax(-1, keepdim=True)
    low = low.bfloat16().float()
    scale = ((high - low) / 15).bfloat16().float()
    quantised = torch.where(scale > 0, torch.round((w_NGI - low) / scale), 0.0).clamp(0, 15)
    return (quantised * scale + low).flatten(1)[:, : weight_NK.shape[1]]


def _grouped(x: Tensor, size: int) -> Tensor:
    """(R, K) to (R, G, I), the last group padded with zeros."""
    padded = F.pad(x.float(), (0, -x.shape[1] % size))
    return padded.view(len(x), -1, size)


def _next_bfloat16(x: Tensor) -> Tensor:
    """The next larger bfloat16 of positive ones, in float32."""
    return (x.view(torch.int32) + (1 << 16)).view(torch.float32)

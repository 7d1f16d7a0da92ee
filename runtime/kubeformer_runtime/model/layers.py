"""The pieces that the decoder and the encoder share: rotary positions, attention, normalisation, MLP.

Shapes are part of every tensor's name:
    B rows of a batch    T tokens of a row    D width of the model    F width of the MLP
    H attention heads    K key-value heads    W width of one head     V vocabulary    C classes
so x_BTD holds one vector of the model's width for every token of every row.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kubeformer_runtime.model.config import Activation, RopeScaling
from kubeformer_runtime.model.decoder_config import DecoderActivation

# Of an MLP without a gate. GELUTanh is GPT-2's approximation.
PLAIN_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "ReLU": F.relu,
    "GELU": F.gelu,
    "GELUTanh": partial(F.gelu, approximate="tanh"),
}


def rope_frequencies(head_width: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians by which each pair of a head's channels turns per position, float32, shape (head_width / 2,).

    Source: RoFormer, https://arxiv.org/abs/2104.09864; the llama3 rule: Llama 3.1's model card and code.
    """
    frequency_P = theta ** -(torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    if scaling is None:
        return frequency_P
    if scaling.kind == "linear":
        return frequency_P / scaling.factor
    wavelength_P = 2 * math.pi / frequency_P
    turns_P = scaling.original_max_length / wavelength_P  # in the length first trained for
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep_P = ((turns_P - low) / (high - low)).clamp(0, 1)  # 1: as it was, 0: stretched by the whole factor
    return keep_P * frequency_P + (1 - keep_P) * frequency_P / scaling.factor


def rope_table(frequency_P: Tensor, position_T: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine for `rotate`, each of shape (T, W), float32. Positions may be any integers, of any shape."""
    angle_TP = position_T.to(torch.float32)[..., None] * frequency_P
    angle_TW = torch.cat((angle_TP, angle_TP), dim=-1)
    return angle_TW.cos(), angle_TW.sin()


def rotate(x_BHTW: Tensor, cosine_TW: Tensor, sine_TW: Tensor) -> Tensor:
    """Turns channel i of a head together with channel i + W/2 (Hugging Face's order) by the position's angle."""
    left, right = x_BHTW.chunk(2, dim=-1)
    turned_BHTW = torch.cat((-right, left), dim=-1)
    return x_BHTW * cosine_TW.to(x_BHTW.dtype) + turned_BHTW * sine_TW.to(x_BHTW.dtype)


def interleave(tensor: Tensor, head_width: int) -> Tensor:
    """Reorders the rows of a q or k projection: (0, 1, 2, ...) to (0, P, 1, P + 1, ...) within every head.

    What `rotate` turns together are neighbours then.
    """
    rows = tensor.shape[0]
    halves = tensor.view(rows // head_width, 2, head_width // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · weight, with the mean taken in float32. https://arxiv.org/abs/1910.07467"""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Same shape and dtype as its input."""
        wide_BTD = x_BTD.float()
        scale_BT1 = torch.rsqrt(wide_BTD.square().mean(dim=-1, keepdim=True) + self.epsilon)
        return self.weight * (wide_BTD * scale_BT1).to(x_BTD.dtype)


class Attention(nn.Module):
    """Multi-head attention with rotary positions; fewer key-value heads than heads is grouped-query attention.

    With `qk_norm_epsilon` every head of q and k goes through an RMSNorm before it is turned (Qwen3).
    Names of the projections and norms are Hugging Face's, so a state dict needs no translation.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        bias: bool,
        *,
        output_bias: bool | None = None,
        qk_norm_epsilon: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.key_value_heads, self.head_width = heads, key_value_heads, head_width
        self.q_proj = nn.Linear(width, heads * head_width, bias=bias)
        self.k_proj = nn.Linear(width, key_value_heads * head_width, bias=bias)
        self.v_proj = nn.Linear(width, key_value_heads * head_width, bias=bias)
        self.o_proj = nn.Linear(heads * head_width, width, bias=bias if output_bias is None else output_bias)
        self.q_norm = RMSNorm(head_width, qk_norm_epsilon) if qk_norm_epsilon is not None else nn.Identity()
        self.k_norm = RMSNorm(head_width, qk_norm_epsilon) if qk_norm_epsilon is not None else nn.Identity()

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, causal: bool) -> Tensor:
        """Every token looks at all tokens that `mask` (True: look; broadcast to (B, H, T, T)) and `causal` allow.

        Give one of the two. Returns (B, T, D).
        """
        b, t, _ = x_BTD.shape
        q_BHTW = self.q_norm(self.q_proj(x_BTD).view(b, t, self.heads, self.head_width)).transpose(1, 2)
        k_BKTW = self.k_norm(self.k_proj(x_BTD).view(b, t, self.key_value_heads, self.head_width)).transpose(1, 2)
        v_BKTW = self.v_proj(x_BTD).view(b, t, self.key_value_heads, self.head_width).transpose(1, 2)
        if rope is not None:
            q_BHTW, k_BKTW = rotate(q_BHTW, *rope), rotate(k_BKTW, *rope)
        y_BHTW = F.scaled_dot_product_attention(
            q_BHTW, k_BKTW, v_BKTW, mask, is_causal=causal, enable_gqa=self.heads != self.key_value_heads
        )
        y: Tensor = self.o_proj(y_BHTW.transpose(1, 2).reshape(b, t, self.heads * self.head_width))
        return y


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)). https://arxiv.org/abs/2002.05202"""

    def __init__(self, width: int, mlp_width: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_width, bias=bias)
        self.up_proj = nn.Linear(width, mlp_width, bias=bias)
        self.down_proj = nn.Linear(mlp_width, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return y


class PlainMLP(nn.Module):
    """down(activation(up(x))), the MLP of the first Transformers."""

    def __init__(self, width: int, mlp_width: int, activation: Activation | DecoderActivation) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, mlp_width)
        self.down_proj = nn.Linear(mlp_width, width)
        self.activation = PLAIN_ACTIVATIONS[activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        y: Tensor = self.down_proj(self.activation(self.up_proj(x_BTD)))
        return y


def window_mask(position_T: Tensor, position_L: Tensor, window: int | None) -> Tensor:
    """(T, L), True where a token at one position may look at the other: not ahead, and `window` back with itself."""
    back_TL = position_T[:, None] - position_L[None, :]
    return back_TL >= 0 if window is None else (back_TL >= 0) & (back_TL < window)


def places(document_BT: Tensor) -> Tensor:
    """(B, T), each token's place in its document, from 0. A document is a run of equal numbers."""
    position_T = torch.arange(document_BT.shape[1], device=document_BT.device)
    begins_BT = torch.ones_like(document_BT, dtype=torch.bool)
    begins_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    return position_T - (position_T * begins_BT).cummax(dim=1).values


def document_mask(document_BT: Tensor) -> Tensor:
    """(B, 1, T, T), True where a token may look at another: in the same document, not ahead."""
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return same_BTT.tril()[:, None]


def initialise(
    module: nn.Module,
    deviation: float,
    layers: int,
    branch_ends: tuple[str, ...] = ("o_proj.weight", "down_proj.weight"),
) -> None:
    """Normal weights of the given deviation, zero biases; what writes into the residual stream is scaled down.

    Each of the 2 · layers branches adds its variance to the stream, hence the division by its root (GPT-2).
    `branch_ends`: how the names of the matrices that end a branch end.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            continue
        branch_end = name.endswith(branch_ends)
        nn.init.normal_(parameter, 0.0, deviation / math.sqrt(2 * layers) if branch_end else deviation)

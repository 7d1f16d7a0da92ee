"""LlamaRunner: a Llama-family decoder over the paged KV cache, for inference; exact, on CPU or CUDA.

Same weights and same mathematics as kubeformer_runtime.model.llama (the oracle of its tests), arranged for speed:
- q, k and v are one matrix, gate and up another; weights are packed (see linear.py);
- channels of a head are reordered so that those which rotary positions turn together are neighbours: one
  complex multiplication turns q and k of all heads. Dot products do not care about a common order;
- a token's keys and values are neighbours in the cache: one write a layer, one gather for reading;
- the heads that share a key-value head are folded into the query's length, so nothing is repeated.

Shapes: N tokens of a step, D width, H heads, K key-value heads, W head width, P = W/2 pairs, V vocabulary,
G rows of a decode group, L tokens of context.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kubeformer_runtime.engine.batch import Batch, DecodeGroup, PrefillChunk
from kubeformer_runtime.engine.linear import PackedLinear
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.layers import rope_frequencies
from kubeformer_runtime.model.weights import EMBEDDING, HEAD


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights."""

    attention_norm: Tensor
    qkv: PackedLinear
    output: PackedLinear
    mlp_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear


class LlamaRunner:
    """Runs batches; owns weights and cache. `weights` is emptied while layers are built, so nothing is held twice.

    `reload` reads the same weights again, for `restore`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: dict[str, Tensor],
        *,
        num_blocks: int,
        block_size: int = 16,
        max_length: int | None = None,
        pack: bool = True,
        reload: Callable[[], dict[str, Tensor]] | None = None,
    ) -> None:
        self.config = config
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.dtype, self.device = weights[EMBEDDING].dtype, weights[EMBEDDING].device
        self._pack, self._reload = pack, reload
        self._take(weights)
        position = torch.arange(max_length or config.max_length, dtype=torch.float32)
        angle_TP = position[:, None] * rope_frequencies(config.head_width, config.rope_theta, config.rope_scaling)
        self.turn_TP = torch.polar(torch.ones_like(angle_TP), angle_TP).to(self.device)  # cos + i sin

    def _take(self, weights: dict[str, Tensor]) -> None:
        """Build the layers and an empty cache."""
        config = self.config
        self.embedding = weights.pop(EMBEDDING)
        self.layers = [self._layer(weights, index, self._pack) for index in range(config.layers)]
        self.norm = weights.pop("model.norm.weight")
        head = self.embedding if config.tied_embeddings else weights.pop(HEAD)
        self.head = PackedLinear(head, pack=self._pack)
        shape = (self.num_blocks, self.block_size * 2 * config.key_value_heads * config.head_width)
        self.caches = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(config.layers)]

    def release(self) -> None:
        """Let go of weights and cache; nothing can be computed before `restore`."""
        if self._reload is None:
            raise RuntimeError("this runner was given no way to read its weights again")
        self.layers, self.caches = [], []
        del self.embedding, self.norm, self.head

    def restore(self) -> None:
        """Read the weights again; the cache is empty."""
        if self._reload is None:
            raise RuntimeError("this runner was given no way to read its weights again")
        self._take(self._reload())

    @staticmethod
    def block_bytes(config: LlamaConfig, dtype: torch.dtype, block_size: int = 16) -> int:
        """Bytes that one block takes over all layers."""
        return config.layers * block_size * 2 * config.key_value_heads * config.head_width * dtype.itemsize

    def _layer(self, weights: dict[str, Tensor], index: int, pack: bool) -> Layer:
        prefix = f"model.layers.{index}."

        def take(name: str) -> Tensor | None:
            return weights.pop(prefix + name, None)

        def joined(module: str, names: tuple[str, ...]) -> PackedLinear:
            parts: dict[str, list[Tensor]] = {"weight": [], "bias": []}
            for name in names:
                for kind, found in parts.items():
                    if (tensor := take(f"{module}.{name}.{kind}")) is not None:
                        turned = name in ("q_proj", "k_proj")
                        found.append(interleave(tensor, self.config.head_width) if turned else tensor)
            return PackedLinear(
                torch.cat(parts["weight"]), torch.cat(parts["bias"]) if parts["bias"] else None, pack=pack
            )

        return Layer(
            attention_norm=weights.pop(prefix + "input_layernorm.weight"),
            qkv=joined("self_attn", ("q_proj", "k_proj", "v_proj")),
            output=joined("self_attn", ("o_proj",)),
            mlp_norm=weights.pop(prefix + "post_attention_layernorm.weight"),
            gate_up=joined("mlp", ("gate_proj", "up_proj")),
            down=joined("mlp", ("down_proj",)),
        )

    @torch.inference_mode()
    def execute(self, batch: Batch) -> Tensor:
        """Compute the step's keys, values and logits: float32 (S, V), one row for each of `batch.sample_rows`."""
        x_ND = self.embedding[batch.tokens]
        turn_N1P = self.turn_TP[batch.positions][:, None, :]
        masks = [self._chunk_mask(chunk) for chunk in batch.chunks]
        for layer, cache in zip(self.layers, self.caches, strict=True):
            x_ND = x_ND + layer.output(self._attend(layer, cache, x_ND, turn_N1P, batch, masks))
            gate_NF, up_NF = layer.gate_up(self._normalise(x_ND, layer.mlp_norm)).chunk(2, dim=-1)
            x_ND = x_ND + layer.down(F.silu(gate_NF) * up_NF)
        wanted_SD = x_ND[batch.sample_rows]
        if not len(wanted_SD):
            return torch.empty(0, self.config.vocabulary_size)
        return self.head(self._normalise(wanted_SD, self.norm)).float()

    def _normalise(self, x_ND: Tensor, weight_D: Tensor) -> Tensor:
        """RMSNorm; the mean in float32."""
        wide_ND = x_ND.float()
        scale_N1 = torch.rsqrt(wide_ND.square().mean(-1, keepdim=True).add_(self.config.norm_epsilon))
        return (wide_ND * scale_N1).to(self.dtype) * weight_D

    def _attend(
        self,
        layer: Layer,
        cache: Tensor,
        x_ND: Tensor,
        turn_N1P: Tensor,
        batch: Batch,
        masks: list[Tensor | None],
    ) -> Tensor:
        """Write the step's keys and values, then let every token look at its context. (N, D) to (N, H · W)."""
        config = self.config
        n, heads, shared, width = len(x_ND), config.heads, config.key_value_heads, config.head_width
        qkv = layer.qkv(self._normalise(x_ND, layer.attention_norm))
        turned = (heads + shared) * width
        qk_NXW = qkv[:, :turned].view(n, heads + shared, width)
        pairs_NXP = torch.view_as_complex(qk_NXW.float().view(n, heads + shared, width // 2, 2))
        qk_NXW.copy_(torch.view_as_real(pairs_NXP * turn_N1P).view(n, heads + shared, width))
        slot_view = cache.view(-1, 2 * shared * width)
        slot_view.index_copy_(0, batch.slots, qkv[:, heads * width :])
        q_NHW = qkv[:, : heads * width].view(n, heads, width)

        parts = [self._decode(cache, q_NHW[group.start : group.stop], group) for group in batch.groups]
        for chunk, mask in zip(batch.chunks, masks, strict=True):
            parts.append(self._prefill(cache, qkv[chunk.start : chunk.stop], chunk, mask))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, cache: Tensor, q_GHW: Tensor, group: DecodeGroup) -> Tensor:
        """One token a row against its whole context, which is gathered block by block. Returns (G, H · W)."""
        config = self.config
        g, shared, width = len(q_GHW), config.key_value_heads, config.head_width
        kv_GL = torch.index_select(cache, 0, group.blocks).view(g, -1, 2, shared, width)
        y_GKXW = F.scaled_dot_product_attention(
            q_GHW.reshape(g, shared, config.heads // shared, width),
            kv_GL[:, :, 0].transpose(1, 2),
            kv_GL[:, :, 1].transpose(1, 2),
            group.mask,
        )
        return y_GKXW.reshape(g, config.heads * width)

    def _prefill(self, cache: Tensor, qkv_T: Tensor, chunk: PrefillChunk, mask: Tensor | None) -> Tensor:
        """A chunk of one prompt. Without context its own keys and values are all there is to see."""
        config = self.config
        t, heads, shared, width = len(qkv_T), config.heads, config.key_value_heads, config.head_width
        q_1HTW = qkv_T[:, : heads * width].view(1, t, heads, width).transpose(1, 2)
        if chunk.context:
            kv_L = torch.index_select(cache, 0, chunk.blocks).view(-1, 2, shared, width)[: chunk.context + t]
        else:
            kv_L = qkv_T[:, heads * width :].view(t, 2, shared, width)
        y_1HTW = F.scaled_dot_product_attention(
            q_1HTW,
            kv_L[None, :, 0].transpose(1, 2),
            kv_L[None, :, 1].transpose(1, 2),
            mask,
            is_causal=mask is None,
            enable_gqa=heads != shared,
        )
        return y_1HTW.transpose(1, 2).reshape(t, heads * width)

    def _chunk_mask(self, chunk: PrefillChunk) -> Tensor | None:
        """(T, L) of 0 and -inf for a chunk with context; None where plain causality says it all."""
        if not chunk.context:
            return None
        t, length = chunk.stop - chunk.start, chunk.context + chunk.stop - chunk.start
        ahead = torch.ones(t, length, dtype=torch.bool, device=self.device).triu_(chunk.context + 1)
        return torch.zeros(t, length, dtype=self.dtype, device=self.device).masked_fill_(ahead, float("-inf"))


def interleave(tensor: Tensor, head_width: int) -> Tensor:
    """Reorder the rows of a q or k projection: (0, 1, 2, ...) to (0, P, 1, P + 1, ...) within every head."""
    rows = tensor.shape[0]
    halves = tensor.view(rows // head_width, 2, head_width // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)

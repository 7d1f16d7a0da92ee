"""LlamaRunner: a decoder of any family over the paged KV cache, for inference; exact, on CPU or CUDA.

What a family is, the config's features say: norm, positions, activation, biases, norms of q and k, windows.
Same weights and same mathematics as kubeformer_runtime.model.llama (the oracle of its tests), arranged for speed:
- q, k and v are one matrix, gate and up another; weights are packed (see linear.py);
- channels of a head are reordered so that those which rotary positions turn together are neighbours: one
  complex multiplication turns q and k of all heads. Dot products do not care about a common order;
- a token's keys and values are neighbours in the cache: one write a layer, one gather for reading;
- the heads that share a key-value head are folded into the query's length, so nothing is repeated;
- rows with LoRA adapters go through the same matrices as all others, and get their adapter's part added (lora.py).

Shapes: N tokens of a step, D width, H heads, K key-value heads, W head width, P = W/2 pairs, V vocabulary,
G rows of a decode group, L tokens of context.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kubeformer_runtime.engine.batch import MASKED, Batch, DecodeGroup, PrefillChunk
from kubeformer_runtime.engine.linear import PackedLinear
from kubeformer_runtime.engine.lora import LayerAdapter, LoraAdapter, add_adapters, layer_adapters
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.layers import PLAIN_ACTIVATIONS, interleave, rope_frequencies, window_mask
from kubeformer_runtime.model.weights import EMBEDDING, HEAD, POSITION_EMBEDDING


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm, or LayerNorm where there is a bias."""

    weight_D: Tensor
    bias_D: Tensor | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights."""

    attention_norm: Norm
    qkv: PackedLinear
    qk_norm_XW: Tensor | None  # X = H + K
    output: PackedLinear
    mlp_norm: Norm
    gate_up: PackedLinear  # of an MLP without a gate: up alone
    down: PackedLinear
    window: int | None  # how many tokens a token sees, itself among them


@dataclass(frozen=True, slots=True)
class Masks:
    """Additive masks of a step for layers with the same window; None where plain causality says it all."""

    decode: list[Tensor | None]  # of each group: (G, 1, 1, L)
    prefill: list[Tensor | None]  # of each chunk: (T, L)


class LlamaRunner:
    """Runs batches; owns weights and cache. `weights` is emptied while layers are built, so nothing is held twice.

    `reload` reads the same weights again, for `restore`.
    """

    kernels = "torch"

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
        self._adapters: dict[str, list[LayerAdapter]] = {}
        self._take(weights)
        position = torch.arange(max_length or config.max_length, dtype=torch.float32)
        angle_TP = position[:, None] * rope_frequencies(config.head_width, config.rope_theta, config.rope_scaling)
        # cos + i sin; without rotary positions it is not used.
        self.turn_TP = torch.polar(torch.ones_like(angle_TP), angle_TP).to(self.device)

    def _take(self, weights: dict[str, Tensor]) -> None:
        """Build the layers and an empty cache."""
        config = self.config
        self.embedding = weights.pop(EMBEDDING)
        self.position_embedding = weights.pop(POSITION_EMBEDDING) if config.positions == "Learned" else None
        self.layers = [self._layer(weights, index, self._pack) for index in range(config.layers)]
        self.norm = _norm(weights, "model.norm")
        head = self.embedding if config.tied_embeddings else weights.pop(HEAD)
        self.head = PackedLinear(head, pack=self._pack)
        shape = (self.num_blocks, self.block_size * 2 * config.key_value_heads * config.head_width)
        self.caches = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(config.layers)]

    def release(self) -> None:
        """Let go of weights and cache; nothing can be computed before `restore`."""
        if self._reload is None:
            raise RuntimeError("this runner was given no way to read its weights again")
        self.layers, self.caches = [], []
        del self.embedding, self.position_embedding, self.norm, self.head

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
        rotary, gated = self.config.positions == "Rotary", self.config.activation == "SwiGLU"

        def take(name: str) -> Tensor | None:
            return weights.pop(prefix + name, None)

        def joined(module: str, names: tuple[str, ...]) -> PackedLinear:
            parts: dict[str, list[Tensor]] = {"weight": [], "bias": []}
            for name in names:
                for kind, found in parts.items():
                    if (tensor := take(f"{module}.{name}.{kind}")) is not None:
                        turned = rotary and name in ("q_proj", "k_proj")
                        found.append(interleave(tensor, self.config.head_width) if turned else tensor)
            return PackedLinear(
                torch.cat(parts["weight"]), torch.cat(parts["bias"]) if parts["bias"] else None, pack=pack
            )

        def qk_norm() -> Tensor | None:
            parts = [
                (take("self_attn.q_norm.weight"), self.config.heads),
                (take("self_attn.k_norm.weight"), self.config.key_value_heads),
            ]
            rows = [
                interleave(weight_W, self.config.head_width).expand(count, -1)
                for weight_W, count in parts
                if weight_W is not None
            ]
            return torch.cat(rows) if rows else None

        return Layer(
            attention_norm=_norm(weights, prefix + "input_layernorm"),
            qkv=joined("self_attn", ("q_proj", "k_proj", "v_proj")),
            qk_norm_XW=qk_norm(),
            output=joined("self_attn", ("o_proj",)),
            mlp_norm=_norm(weights, prefix + "post_attention_layernorm"),
            gate_up=joined("mlp", ("gate_proj", "up_proj") if gated else ("up_proj",)),
            down=joined("mlp", ("down_proj",)),
            window=self.config.window_of(index),
        )

    @property
    def held_adapters(self) -> tuple[str, ...]:
        """Keys of the adapters in memory."""
        return tuple(self._adapters)

    def add_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Hold an adapter for rows whose sequence names `key`."""
        self._adapters[key] = layer_adapters(adapter, self.config, self.dtype, self.device)

    def remove_adapter(self, key: str) -> None:
        """Let go of an adapter that no sequence uses any more."""
        del self._adapters[key]

    @torch.inference_mode()
    def execute(self, batch: Batch) -> Tensor:
        """Compute the step's keys, values and logits: float32 (S, V), one row for each of `batch.sample_rows`."""
        x_ND = self.embedding[batch.tokens]
        turn_N1P = None
        if self.position_embedding is not None:
            x_ND = x_ND + self.position_embedding[batch.positions]
        else:
            turn_N1P = self.turn_TP[batch.positions][:, None, :]
        masks = {window: self._masks(batch, window) for window in {layer.window for layer in self.layers}}
        adapters = [(self._adapters[key], rows) for key, rows in batch.adapter_rows]
        for index, (layer, cache) in enumerate(zip(self.layers, self.caches, strict=True)):
            loras = [(parts[index], rows) for parts, rows in adapters]
            seen_ND = self._normalise(x_ND, layer.attention_norm)
            qkv = add_adapters(layer.qkv(seen_ND), seen_ND, [(lora.qkv, rows) for lora, rows in loras])
            y_ND = self._attend(layer, cache, qkv, turn_N1P, batch, masks[layer.window])
            x_ND = x_ND + add_adapters(layer.output(y_ND), y_ND, [(lora.output, rows) for lora, rows in loras])
            seen_ND = self._normalise(x_ND, layer.mlp_norm)
            wide = add_adapters(layer.gate_up(seen_ND), seen_ND, [(lora.gate_up, rows) for lora, rows in loras])
            if self.config.activation == "SwiGLU":
                gate_NF, up_NF = wide.chunk(2, dim=-1)
                wide_NF = F.silu(gate_NF) * up_NF
            else:
                wide_NF = PLAIN_ACTIVATIONS[self.config.activation](wide)
            x_ND = x_ND + add_adapters(layer.down(wide_NF), wide_NF, [(lora.down, rows) for lora, rows in loras])
        wanted_SD = x_ND[batch.sample_rows]
        if not len(wanted_SD):
            return torch.empty(0, self.config.vocabulary_size)
        return self.head(self._normalise(wanted_SD, self.norm)).float()

    def _normalise(self, x_ND: Tensor, norm: Norm) -> Tensor:
        if norm.bias_D is not None:
            return F.layer_norm(x_ND, x_ND.shape[-1:], norm.weight_D, norm.bias_D, self.config.norm_epsilon)
        return self._scale(x_ND) * norm.weight_D

    def _scale(self, x: Tensor) -> Tensor:
        """RMSNorm over the last dimension, without a weight; the mean in float32."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(self.config.norm_epsilon))
        return (wide * scale).to(self.dtype)

    def _attend(
        self, layer: Layer, cache: Tensor, qkv: Tensor, turn_N1P: Tensor | None, batch: Batch, masks: Masks
    ) -> Tensor:
        """Write the step's keys and values, then let every token look at its context. Returns (N, H · W)."""
        config = self.config
        n, heads, shared, width = len(qkv), config.heads, config.key_value_heads, config.head_width
        qk_NXW = qkv[:, : (heads + shared) * width].view(n, heads + shared, width)
        if layer.qk_norm_XW is not None:
            qk_NXW.copy_(self._scale(qk_NXW) * layer.qk_norm_XW)
        if turn_N1P is not None:
            pairs_NXP = torch.view_as_complex(qk_NXW.float().view(n, heads + shared, width // 2, 2))
            qk_NXW.copy_(torch.view_as_real(pairs_NXP * turn_N1P).view(n, heads + shared, width))
        slot_view = cache.view(-1, 2 * shared * width)
        slot_view.index_copy_(0, batch.slots, qkv[:, heads * width :])
        q_NHW = qkv[:, : heads * width].view(n, heads, width)

        parts = [
            self._decode(cache, q_NHW[group.start : group.stop], group, mask)
            for group, mask in zip(batch.groups, masks.decode, strict=True)
        ]
        for chunk, mask in zip(batch.chunks, masks.prefill, strict=True):
            parts.append(self._prefill(cache, qkv[chunk.start : chunk.stop], chunk, mask))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, cache: Tensor, q_GHW: Tensor, group: DecodeGroup, mask: Tensor | None) -> Tensor:
        """One token a row against its whole context, which is gathered block by block. Returns (G, H · W)."""
        config = self.config
        g, shared, width = len(q_GHW), config.key_value_heads, config.head_width
        kv_GL = torch.index_select(cache, 0, group.blocks).view(g, -1, 2, shared, width)
        y_GKXW = F.scaled_dot_product_attention(
            q_GHW.reshape(g, shared, config.heads // shared, width),
            kv_GL[:, :, 0].transpose(1, 2),
            kv_GL[:, :, 1].transpose(1, 2),
            mask,
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

    def _masks(self, batch: Batch, window: int | None) -> Masks:
        return Masks(
            [self._decode_mask(batch, group, window) for group in batch.groups],
            [self._chunk_mask(chunk, window) for chunk in batch.chunks],
        )

    def _decode_mask(self, batch: Batch, group: DecodeGroup, window: int | None) -> Tensor | None:
        """The group's own mask, which hides its padding, and what lies before the window."""
        if window is None or max(batch.row_positions[group.start : group.stop]) < window:
            return group.mask
        length = len(group.blocks) // (group.stop - group.start) * self.block_size
        seen_GL = window_mask(
            batch.positions[group.start : group.stop], torch.arange(length, device=self.device), window
        )
        return self._additive(seen_GL)[:, None, None, :]

    def _chunk_mask(self, chunk: PrefillChunk, window: int | None) -> Tensor | None:
        t, length = chunk.stop - chunk.start, chunk.context + chunk.stop - chunk.start
        if not chunk.context and (window is None or window >= t):
            return None
        position_L = torch.arange(length, device=self.device)
        return self._additive(window_mask(position_L[length - t :], position_L, window))

    def _additive(self, seen: Tensor) -> Tensor:
        """0 where `seen`, else -inf."""
        return torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill_(~seen, MASKED)


def _norm(weights: dict[str, Tensor], name: str) -> Norm:
    return Norm(weights.pop(f"{name}.weight"), weights.pop(f"{name}.bias", None))

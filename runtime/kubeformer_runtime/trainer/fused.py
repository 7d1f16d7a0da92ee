"""A decoder's loss and gradients without autograd: our kernels between PyTorch's matrix products, on CPUs.

    fused = fuse(network, flat, half=True)             # None where the network or the machine is of another kind
    loss, correct = fused.loss(input_BS, target_BS)    # sums; loss.backward() adds to the flat gradient

What it saves over autograd: q, k and v are one product, gate and up another (their weights are neighbours in the flat
vector, nothing is copied); what lies between products is read and written once; logits exist for a few hundred tokens
at a time, and only where a target counts; attention never computes what the causal mask hides; buffers are kept, so no
page is touched for the first time in every step. In bfloat16 the residual stream, norms, softmax and sums of gradients
stay float32, as under autocast. Equal to the network's own forward and backward within rounding; tests hold it to that.

Letters: N tokens of all rows (B · S), D width, F width of the MLP, V vocabulary, C columns of qkv; see model/layers.py.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from kubeformer_runtime.kernels.training import (
    HEAD_MULTIPLE,
    LANES,
    Heads,
    TrainingKernels,
    load_training_kernels,
    multiplies_bfloat16,
)
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.layers import rope_frequencies, rope_table
from kubeformer_runtime.trainer.flat import Flat
from kubeformer_runtime.trainer.precision import Precision

IGNORE = -100
HEAD_TOKENS = 512  # whose logits exist at once: few enough for the cache, enough for a fast product
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


def can_fuse(config: object, dropout: float, half: bool) -> bool:
    """Whether a network of this kind is what the kernels compute: Llama's features, whole registers, no dropout."""
    return (
        isinstance(config, LlamaConfig)
        and config.norm == "RMSNorm"
        and config.positions == "Rotary"
        and config.activation == "SwiGLU"
        and not (config.attention_bias or config.mlp_bias or config.has_output_bias or config.qk_norm)
        and config.sliding_window is None
        and config.head_width % HEAD_MULTIPLE == 0
        and all(size % LANES == 0 for size in (config.width, config.mlp_width, config.vocabulary_size))
        and dropout == 0
        and (not half or multiplies_bfloat16())
    )


def fuse(network: nn.Module, flat: Flat, *, half: bool, recompute: bool = False) -> "FusedDecoder | None":
    """The fused decoder over a network's flat parameters; None where they or this machine do not allow it.

    `recompute` keeps the residual stream alone between forward and backward (activation checkpointing).
    """
    config, dropout = getattr(network, "config", None), getattr(getattr(network, "model", None), "dropout", 0.0)
    if flat.value_N.device.type != "cpu" or not can_fuse(config, dropout, half):
        return None
    config = cast(LlamaConfig, config)
    wanted = {name for layer in range(config.layers) for name in _layer_names(layer)}
    wanted |= {"model.embed_tokens.weight", "model.norm.weight"}
    wanted |= set() if config.tied_embeddings else {"lm_head.weight"}
    # Other names: adapters, a quantised or frozen base.
    if set(flat.places) != wanted or not all(
        _neighbours(flat, [f"model.layers.{layer}.{part}.weight" for part in parts])
        for layer in range(config.layers)
        for parts in (QKV, GATE_UP)
    ):
        return None
    kernels = load_training_kernels()
    return None if kernels is None else FusedDecoder(config, flat, kernels, half, recompute)


def attach(network: nn.Module, flat: Flat, precision: Precision, recompute: bool) -> None:
    """Lets tasks find the fused decoder as `network.fused`; else, where asked to, layers recompute by autograd."""
    fused = fuse(network, flat, half=precision == "BFloat16", recompute=recompute) if precision != "Float16" else None
    object.__setattr__(network, "fused", fused)
    if fused is None and recompute:
        from torch.utils.checkpoint import checkpoint

        for layers in (module for module in network.modules() if isinstance(module, nn.ModuleList)):
            for layer in layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def of(network: nn.Module) -> "FusedDecoder | None":
    """What `attach` found."""
    return cast("FusedDecoder | None", getattr(network, "fused", None))


def first_seen(document_BS: Tensor) -> Tensor:
    """(B, S) int32: where the document of each token begins in its row; documents are numbered in pieces."""
    position_S = torch.arange(document_BS.shape[1], device=document_BS.device)
    begins_BS = torch.zeros_like(document_BS, dtype=torch.long)
    begins_BS[:, 1:] = position_S[1:] * (document_BS[:, 1:] != document_BS[:, :-1])
    return begins_BS.cummax(1).values.to(torch.int32)


@dataclass(slots=True)
class Layer:
    """Weights of a layer in the type of its products, or their gradients in float32: whole matrices, norms."""

    norm_1: Tensor
    qkv: Tensor
    output: Tensor
    norm_2: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(slots=True)
class Kept:
    """What one layer's backward pass reads again."""

    h1_ND: Tensor
    scale1_N: Tensor
    qkv_NC: Tensor
    out_NO: Tensor
    lse_BHT: Tensor
    middle_ND: Tensor  # the residual stream after attention
    h2_ND: Tensor
    scale2_N: Tensor
    gate_up_N2F: Tensor
    a_NF: Tensor


@dataclass(slots=True)
class Pass:
    """Buffers of one forward pass and its backward pass, for B rows of T tokens."""

    rows: int
    tokens: int
    counts: tuple[int, int]  # how many layers have buffers of their own: `kept`, `stream`
    stream: list[Tensor]  # (N, D) float32: the residual stream before each layer, and after the last
    kept: list[Kept]
    h_ND: Tensor
    scale_N: Tensor
    dh_ND: Tensor
    dhead_VD: Tensor
    token_N: Tensor = field(default_factory=lambda: torch.empty(0))
    first_N: Tensor | None = None


class FusedDecoder:
    """See the module's docstring. Not for several threads at once."""

    def __init__(self, config: LlamaConfig, flat: Flat, kernels: TrainingKernels, half: bool, recompute: bool) -> None:
        self.config, self.flat, self.kernels, self.recompute = config, flat, kernels, recompute
        self.dtype = torch.bfloat16 if half else torch.float32
        self.heads = Heads(config.heads, config.key_value_heads, config.head_width)
        self.matrix_N = torch.empty_like(flat.value_N, dtype=self.dtype) if half else flat.value_N
        self.weights = [self._layer(layer, self.matrix_N, flat.value_N) for layer in range(config.layers)]
        self.gradients = [self._layer(layer, flat.gradient_N, flat.gradient_N) for layer in range(config.layers)]
        head = "model.embed_tokens" if config.tied_embeddings else "lm_head"
        self.head, self.dhead = self._join(self.matrix_N, [head]), self._join(flat.gradient_N, [head])
        self.embedding = self._join(flat.value_N, ["model.embed_tokens"])
        self.dembedding = self._join(flat.gradient_N, ["model.embed_tokens"])
        self.norm, self.dnorm = self._join(flat.value_N, ["model.norm"]), self._join(flat.gradient_N, ["model.norm"])
        self._rope: tuple[Tensor, Tensor] | None = None
        self._passes: list[Pass] = []
        self._spare: dict[str, Tensor] = {}

    def loss(self, token_BS: Tensor, target_BS: Tensor, first_BS: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sums of cross-entropy (with a graph, unless gradients are off) and of right answers, over targets ≥ 0.

        `first_BS`: the first token of the row that each token may look at, where rows hold several documents.
        """
        anchor = torch.zeros((), requires_grad=torch.is_grad_enabled())
        first_N = None if first_BS is None else first_BS.to(torch.int32).flatten().contiguous()
        loss, correct = _Loss.apply(anchor, self, token_BS.long(), target_BS.long(), first_N)  # type: ignore[no-untyped-call]
        return loss, correct

    def forward(self, token_BS: Tensor, target_BS: Tensor, first_N: Tensor | None, train: bool) -> tuple[Tensor, Pass]:
        """(loss and correct as two float64, buffers for `backward`). With `train`, also the head's gradients."""
        if self.matrix_N is not self.flat.value_N:
            self.matrix_N.copy_(self.flat.value_N)
        buffers = self._take(token_BS.shape[0], token_BS.shape[1], train)
        buffers.token_N, buffers.first_N = token_BS.flatten().contiguous(), first_N
        base_ND, y_ND = buffers.stream[0], None
        torch.index_select(self.embedding, 0, buffers.token_N, out=base_ND)
        for index in range(self.config.layers):
            base_ND, y_ND = self._layer_forward(index, buffers, base_ND, y_ND)
        self.kernels.norm_forward(
            base_ND, y_ND, buffers.stream[-1], self.norm, buffers.h_ND, buffers.scale_N, self.config.norm_epsilon
        )
        return self._head(buffers, target_BS.flatten(), train), buffers

    def _layer_forward(self, index: int, buffers: Pass, base_ND: Tensor, y_ND: Tensor | None) -> tuple[Tensor, Tensor]:
        """The layer over base + y, which stays in the stream; its result is the sum of what is returned."""
        kernels, epsilon = self.kernels, self.config.norm_epsilon
        weights, kept, x_ND = self.weights[index], buffers.kept[index], buffers.stream[index]
        kernels.norm_forward(base_ND, y_ND, x_ND, weights.norm_1, kept.h1_ND, kept.scale1_N, epsilon)
        torch.mm(kept.h1_ND, weights.qkv.t(), out=kept.qkv_NC)
        kernels.rotate(kept.qkv_NC, self._turns(buffers.tokens), buffers.tokens, self.heads, 1.0)
        kernels.attention_forward(kept.qkv_NC, buffers.first_N, kept.out_NO, kept.lse_BHT, self.heads)
        attended_ND = self._scratch("branch", kept.h1_ND.shape)
        torch.mm(kept.out_NO, weights.output.t(), out=attended_ND)
        kernels.norm_forward(x_ND, attended_ND, kept.middle_ND, weights.norm_2, kept.h2_ND, kept.scale2_N, epsilon)
        torch.mm(kept.h2_ND, weights.gate_up.t(), out=kept.gate_up_N2F)
        kernels.swiglu_forward(kept.gate_up_N2F, kept.a_NF)
        torch.mm(kept.a_NF, weights.down.t(), out=attended_ND)
        return kept.middle_ND, attended_ND

    def _head(self, buffers: Pass, target_N: Tensor, train: bool) -> Tensor:
        """Loss and number of right answers; with `train` the gradients of the last hidden states and of the head."""
        sums = torch.zeros(2, dtype=torch.float64)
        counted_M = torch.nonzero(target_N >= 0).flatten()
        all_count = len(counted_M) == len(target_N)
        h_MD = buffers.h_ND if all_count else buffers.h_ND.index_select(0, counted_M)
        target_M = target_N if all_count else target_N[counted_M]
        if train:
            dh_MD = buffers.dh_ND if all_count else torch.empty_like(h_MD)
            buffers.dhead_VD.zero_()
        for start in range(0, len(h_MD), HEAD_TOKENS):
            h_CD, target_C = h_MD[start : start + HEAD_TOKENS], target_M[start : start + HEAD_TOKENS]
            logit_CV = self._scratch("logits", (HEAD_TOKENS, len(self.head)))[: len(h_CD)]
            torch.mm(h_CD, self.head.t(), out=logit_CV)
            self.kernels.cross_entropy(logit_CV, target_C, sums, train)
            if train:
                torch.mm(logit_CV, self.head, out=dh_MD[start : start + HEAD_TOKENS])
                self._add_product(buffers.dhead_VD, logit_CV, h_CD)
        if train and not all_count:
            buffers.dh_ND.zero_().index_copy_(0, counted_M, dh_MD)
        return sums

    def backward(self, buffers: Pass, factor: float) -> None:
        """Adds `factor` times the gradients of the loss to the flat gradient."""
        kernels = self.kernels
        half = self.dtype != torch.float32
        kernels.accumulate(self.dhead, buffers.dhead_VD, factor)
        dx_ND = self._scratch("dx", buffers.stream[0].shape, torch.float32).zero_()
        dy_ND = self._scratch("dy", dx_ND.shape) if half else dx_ND  # dx in the type of the products
        narrow = dy_ND if half else None
        final_ND = buffers.stream[-1]
        kernels.norm_backward(buffers.dh_ND, final_ND, self.norm, buffers.scale_N, dx_ND, narrow, self.dnorm, factor)
        for index in reversed(range(self.config.layers)):
            weights, gradients = self.weights[index], self.gradients[index]
            kept, x_ND = buffers.kept[index], buffers.stream[index]
            if self.recompute:
                self._layer_forward(index, buffers, x_ND, None)
            da_NF = self._scratch("da", kept.a_NF.shape)
            torch.mm(dy_ND, weights.down, out=da_NF)
            self._add_product(gradients.down, dy_ND, kept.a_NF)
            kernels.swiglu_backward(da_NF, kept.gate_up_N2F)
            dh_ND = self._scratch("dh", kept.h2_ND.shape)
            torch.mm(kept.gate_up_N2F, weights.gate_up, out=dh_ND)
            self._add_product(gradients.gate_up, kept.gate_up_N2F, kept.h2_ND)
            kernels.norm_backward(dh_ND, kept.middle_ND, weights.norm_2, kept.scale2_N, dx_ND, narrow, gradients.norm_2)
            dout_NO, dqkv_NC = self._scratch("dout", kept.out_NO.shape), self._scratch("dqkv", kept.qkv_NC.shape)
            torch.mm(dy_ND, weights.output, out=dout_NO)
            self._add_product(gradients.output, dy_ND, kept.out_NO)
            kernels.attention_backward(
                kept.qkv_NC, buffers.first_N, kept.out_NO, kept.lse_BHT, dout_NO, dqkv_NC, self.heads
            )
            kernels.rotate(dqkv_NC, self._turns(buffers.tokens), buffers.tokens, self.heads, -1.0)
            torch.mm(dqkv_NC, weights.qkv, out=dh_ND)
            self._add_product(gradients.qkv, dqkv_NC, kept.h1_ND)
            kernels.norm_backward(dh_ND, x_ND, weights.norm_1, kept.scale1_N, dx_ND, narrow, gradients.norm_1)
        kernels.embedding_backward(dx_ND, buffers.token_N, self.dembedding)
        self._passes.append(buffers)

    def release(self, buffers: Pass) -> None:
        """Buffers that no backward pass will read."""
        self._passes.append(buffers)

    def _add_product(self, sums_OI: Tensor, d_NO: Tensor, x_NI: Tensor) -> None:
        """The gradient of a matrix: sums += dᵀ x, summed in float32."""
        if self.dtype == torch.float32:
            sums_OI.addmm_(d_NO.t(), x_NI)
            return
        product_OI = self._scratch("product", sums_OI.shape)
        torch.mm(d_NO.t(), x_NI, out=product_OI)
        self.kernels.accumulate(sums_OI, product_OI)

    def _take(self, rows: int, tokens: int, train: bool) -> Pass:
        """Buffers that are free, or new ones. Without `train` all layers share theirs."""
        keep = (self.config.layers if train and not self.recompute else 1, self.config.layers if train else 1)
        for index, free in enumerate(self._passes):
            if (free.rows, free.tokens, free.counts) == (rows, tokens, keep):
                return self._passes.pop(index)
        self._passes.clear()  # of another shape: the last batch of an epoch, an evaluation
        return self._new_pass(rows, tokens, keep, train)

    def _new_pass(self, rows: int, tokens: int, counts: tuple[int, int], train: bool) -> Pass:
        config, n = self.config, rows * tokens
        inner, columns = config.heads * config.head_width, self.weights[0].qkv.shape[0]

        def wide(width: int) -> Tensor:
            return torch.empty(n, width)

        def narrow(width: int) -> Tensor:
            return torch.empty(n, width, dtype=self.dtype)

        kept = [
            Kept(
                h1_ND=narrow(config.width),
                scale1_N=torch.empty(n),
                qkv_NC=narrow(columns),
                out_NO=narrow(inner),
                lse_BHT=torch.empty(rows, config.heads, tokens),
                middle_ND=wide(config.width),
                h2_ND=narrow(config.width),
                scale2_N=torch.empty(n),
                gate_up_N2F=narrow(2 * config.mlp_width),
                a_NF=narrow(config.mlp_width),
            )
            for _ in range(counts[0])
        ]
        streams = [wide(config.width) for _ in range(counts[1])]
        return Pass(
            rows=rows,
            tokens=tokens,
            counts=counts,
            stream=[streams[index % counts[1]] for index in range(config.layers)] + [wide(config.width)],
            kept=[kept[index % counts[0]] for index in range(config.layers)],
            h_ND=narrow(config.width),
            scale_N=torch.empty(n),
            dh_ND=narrow(config.width if train else 0),
            dhead_VD=torch.empty(self.head.shape if train else (0, 0)),
        )

    def _scratch(self, name: str, shape: "tuple[int, ...] | torch.Size", dtype: torch.dtype | None = None) -> Tensor:
        """A buffer for a moment; one for each name and size."""
        count = 1
        for size in shape:
            count *= size
        held = self._spare.get(name)
        if held is None or held.numel() < count:
            held = self._spare[name] = torch.empty(count, dtype=dtype or self.dtype)
        return held[:count].view(shape)

    def _turns(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine (T, W / 2)."""
        if self._rope is None or len(self._rope[0]) < tokens:
            config = self.config
            frequency_P = rope_frequencies(config.head_width, config.rope_theta, config.rope_scaling)
            cosine_TW, sine_TW = rope_table(frequency_P, torch.arange(tokens))
            half = config.head_width // 2
            self._rope = cosine_TW[:, :half].contiguous(), sine_TW[:, :half].contiguous()
        return self._rope

    def _layer(self, layer: int, matrices_N: Tensor, vectors_N: Tensor) -> Layer:
        prefix = f"model.layers.{layer}."
        return Layer(
            norm_1=self._join(vectors_N, [prefix + "input_layernorm"]),
            qkv=self._join(matrices_N, [prefix + part for part in QKV]),
            output=self._join(matrices_N, [prefix + "self_attn.o_proj"]),
            norm_2=self._join(vectors_N, [prefix + "post_attention_layernorm"]),
            gate_up=self._join(matrices_N, [prefix + part for part in GATE_UP]),
            down=self._join(matrices_N, [prefix + "mlp.down_proj"]),
        )

    def _join(self, vector_N: Tensor, modules: list[str]) -> Tensor:
        """Weights that are neighbours in a flat vector, as one tensor."""
        places = [self.flat.places[f"{module}.weight"] for module in modules]
        whole = vector_N[places[0][0].start : places[-1][0].stop]
        return whole.view(-1, *places[0][1][1:])


class _Loss(torch.autograd.Function):
    """Lets `loss.backward()` reach FusedDecoder.backward. The anchor is there to have a graph at all."""

    @staticmethod
    def forward(
        context: Any, anchor: Tensor, fused: FusedDecoder, token_BS: Tensor, target_BS: Tensor, first_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        train = anchor.requires_grad
        with torch.autocast("cpu", enabled=False):  # types are chosen here already
            sums, buffers = fused.forward(token_BS, target_BS, first_N, train)
        if train:
            context.fused, context.buffers = fused, buffers
        else:
            fused.release(buffers)
        loss, correct = sums.float().unbind()
        context.mark_non_differentiable(correct)
        return loss.clone(), correct.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, ...]:
        buffers, context.buffers = context.buffers, None
        if buffers is None:
            raise RuntimeError("the backward pass of a fused loss runs once")
        with torch.autocast("cpu", enabled=False):
            context.fused.backward(buffers, float(gradients[0]))
        return (None,) * 5


def _layer_names(layer: int) -> list[str]:
    parts = (*QKV, "self_attn.o_proj", *GATE_UP, "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
    return [f"model.layers.{layer}.{part}.weight" for part in parts]


def _neighbours(flat: Flat, names: list[str]) -> bool:
    places = [flat.places[name][0] for name in names]
    return all(left.stop == right.start for left, right in pairwise(places))

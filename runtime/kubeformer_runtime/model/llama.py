"""A decoder, written to be read: norm, attention, norm, MLP; what exactly they are, the config's features say.

Its state dict carries Llama's names in Hugging Face's spelling, so any LlamaForCausalLM, MistralForCausalLM,
Qwen2ForCausalLM or Qwen3ForCausalLM directory loads as it is, a GPT2LMHeadModel after gpt2.py, and what we save
loads in transformers and vLLM. For training and for reference; the engine runs the same weights over a paged
cache. Shapes: see layers.py.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.layers import (
    Attention,
    GatedMLP,
    PlainMLP,
    RMSNorm,
    document_mask,
    initialise,
    places,
    rope_frequencies,
    rope_table,
    window_mask,
)


def make_norm(config: LlamaConfig) -> nn.Module:
    """A norm over the model's width."""
    kind = nn.LayerNorm if config.norm == "LayerNorm" else RMSNorm
    return kind(config.width, config.norm_epsilon)


class LlamaLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); dropout on both branches while training."""

    def __init__(self, config: LlamaConfig, index: int, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(
            config.width,
            config.heads,
            config.key_value_heads,
            config.head_width,
            config.attention_bias,
            output_bias=config.has_output_bias,
            qk_norm_epsilon=config.norm_epsilon if config.qk_norm else None,
        )
        self.post_attention_layernorm = make_norm(config)
        self.mlp: nn.Module
        if config.activation == "SwiGLU":
            self.mlp = GatedMLP(config.width, config.mlp_width, config.mlp_bias)
        else:
            self.mlp = PlainMLP(config.width, config.mlp_width, config.activation)
        self.window = config.window_of(index)
        self.dropout = dropout

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        position_T: Tensor,
        packed_B1TT: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) to (B, T, D). `packed_B1TT`: what a token may look at where rows hold several documents."""
        mask = packed_B1TT
        if self.window is not None and self.window < len(position_T):
            mask_TT = window_mask(position_T, position_T, self.window)
            mask = mask_TT if packed_B1TT is None else packed_B1TT & mask_TT
        attended_BTD = self.self_attn(self.input_layernorm(x_BTD), rope, mask, causal=mask is None)
        x_BTD = x_BTD + F.dropout(attended_BTD, self.dropout, self.training)
        thought_BTD = self.mlp(self.post_attention_layernorm(x_BTD))
        return x_BTD + F.dropout(thought_BTD, self.dropout, self.training)


class LlamaBody(nn.Module):
    """Tokens to hidden states; called `model` in Hugging Face's names."""

    def __init__(self, config: LlamaConfig, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary_size, config.width)
        self.embed_positions = nn.Embedding(config.max_length, config.width) if config.positions == "Learned" else None
        self.layers = nn.ModuleList(LlamaLayer(config, index, dropout) for index in range(config.layers))
        self.norm = make_norm(config)
        self.dropout = dropout
        frequency_P = rope_frequencies(config.head_width, config.rope_theta, config.rope_scaling)
        self.register_buffer("frequency_P", frequency_P, persistent=False)

    def forward(self, token_BT: Tensor, document_BT: Tensor | None = None) -> Tensor:
        """(B, T) token ids to (B, T, D) after the last norm. `document_BT`: see Llama."""
        position_T = torch.arange(token_BT.shape[1], device=token_BT.device)
        place, packed_B1TT = position_T, None  # place: of a token in its document
        if document_BT is not None:
            place, packed_B1TT = places(document_BT), document_mask(document_BT)
        x_BTD: Tensor = self.embed_tokens(token_BT)
        rope = None
        if self.embed_positions is not None:
            x_BTD = x_BTD + self.embed_positions(place)
        else:
            rope = rope_table(self.get_buffer("frequency_P"), place)
            if document_BT is not None:
                rope = (rope[0][:, None], rope[1][:, None])  # the same for every head
        x_BTD = F.dropout(x_BTD, self.dropout, self.training)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rope, position_T, packed_B1TT)
        y_BTD: Tensor = self.norm(x_BTD)
        return y_BTD


class Llama(nn.Module):
    """The language model: body and output head. `dropout` is used in training only and not part of the model."""

    def __init__(self, config: LlamaConfig, dropout: float = 0.0) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.model = LlamaBody(config, dropout)
        self.lm_head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        initialise(self, config.initializer_range, config.layers)
        if config.tied_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, token_BT: Tensor, document_BT: Tensor | None = None) -> Tensor:
        """(B, T) token ids to (B, T, V) logits of the token that follows each.

        `document_BT` numbers the documents where rows are packed with several, each in one piece: every document is
        read as if it stood alone in a row, from position 0 and blind to its neighbours.
        """
        logit_BTV: Tensor = self.lm_head(self.model(token_BT, document_BT))
        return logit_BTV

"""A Llama-family decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Its state dict carries Hugging Face's names, so any LlamaForCausalLM directory loads as it is and what we save
loads in transformers and vLLM. For training and for reference; the engine runs the same weights over a paged
cache. Shapes: see layers.py.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.layers import Attention, GatedMLP, RMSNorm, initialise, rope_frequencies, rope_table


class LlamaLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); dropout on both branches while training."""

    def __init__(self, config: LlamaConfig, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.self_attn = Attention(
            config.width, config.heads, config.key_value_heads, config.head_width, config.attention_bias
        )
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = GatedMLP(config.width, config.mlp_width, config.mlp_bias)
        self.dropout = dropout

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        attended_BTD = self.self_attn(self.input_layernorm(x_BTD), rope, None, causal=True)
        x_BTD = x_BTD + F.dropout(attended_BTD, self.dropout, self.training)
        thought_BTD = self.mlp(self.post_attention_layernorm(x_BTD))
        return x_BTD + F.dropout(thought_BTD, self.dropout, self.training)


class LlamaBody(nn.Module):
    """Tokens to hidden states; called `model` in Hugging Face's names."""

    def __init__(self, config: LlamaConfig, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary_size, config.width)
        self.layers = nn.ModuleList(LlamaLayer(config, dropout) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        self.dropout = dropout
        frequency_P = rope_frequencies(config.head_width, config.rope_theta, config.rope_scaling)
        self.register_buffer("frequency_P", frequency_P, persistent=False)

    def forward(self, token_BT: Tensor) -> Tensor:
        """(B, T) token ids to (B, T, D) after the last norm."""
        frequency_P = self.get_buffer("frequency_P")
        rope = rope_table(frequency_P, torch.arange(token_BT.shape[1], device=token_BT.device))
        x_BTD: Tensor = F.dropout(self.embed_tokens(token_BT), self.dropout, self.training)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rope)
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

    def forward(self, token_BT: Tensor) -> Tensor:
        """(B, T) token ids to (B, T, V) logits of the token that follows each."""
        logit_BTV: Tensor = self.lm_head(self.model(token_BT))
        return logit_BTV

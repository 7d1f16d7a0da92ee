"""A text classifier to train from the beginning: a bidirectional encoder in ModernBERT's layout. Shapes: layers.py.

    model = ModernBert(config); logit_BC = model(token_BT, length_B)

Beside the decoder (llama.py) three things differ: every token looks both ways, one vector stands for the whole text
(the mean of its tokens), and a head turns that into one number a class. Names of weights are Hugging Face's.
Source: https://arxiv.org/abs/2412.13663
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kubeformer_runtime.model.layers import initialise, rope_frequencies, rope_table, rotate
from kubeformer_runtime.model.modern_bert_config import ModernBertConfig

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"ReLU": F.relu, "GELU": F.gelu, "SiLU": F.silu}


def _norm(config: ModernBertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.width, config.norm_epsilon, bias=config.norm_bias)


class ModernBertAttention(nn.Module):
    """softmax(Q Kᵀ / √d_k) V in heads, every token looking at every token that is there."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.Wqkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.Wo = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], mask_B11T: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        b, t, d = x_BTD.shape
        q_BHTW, k_BHTW, v_BHTW = self.Wqkv(x_BTD).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y_BHTW = F.scaled_dot_product_attention(rotate(q_BHTW, *rope), rotate(k_BHTW, *rope), v_BHTW, mask_B11T)
        y_BTD: Tensor = self.Wo(y_BHTW.transpose(1, 2).reshape(b, t, d))
        return y_BTD


class ModernBertMLP(nn.Module):
    """Wo(activation(a) · g), where a and g are the two halves of Wi(x): a gated MLP, https://arxiv.org/abs/2002.05202"""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.width, 2 * config.mlp_width, bias=config.bias)
        self.Wo = nn.Linear(config.mlp_width, config.width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        a_BTF, gate_BTF = self.Wi(x_BTD).chunk(2, dim=-1)
        y_BTD: Tensor = self.Wo(self.activation(a_BTF) * gate_BTF)
        return y_BTD


class ModernBertLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). The first layer's input is normed already."""

    def __init__(self, config: ModernBertConfig, index: int) -> None:
        super().__init__()
        self.attn_norm = _norm(config) if index > 0 else nn.Identity()
        self.attn = ModernBertAttention(config)
        self.mlp_norm = _norm(config)
        self.mlp = ModernBertMLP(config)
        self.dropout = config.dropout

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], mask_B11T: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + F.dropout(self.attn(self.attn_norm(x_BTD), rope, mask_B11T), self.dropout, self.training)
        return x_BTD + F.dropout(self.mlp(self.mlp_norm(x_BTD)), self.dropout, self.training)


class ModernBertEmbeddings(nn.Module):
    """Tokens to vectors, normed. Positions come with the rotation in attention."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocabulary_size, config.width)
        self.norm = _norm(config)


class ModernBertBody(nn.Module):
    """Called `model` in Hugging Face's names."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = nn.ModuleList(ModernBertLayer(config, index) for index in range(config.layers))
        self.final_norm = _norm(config)


class ModernBertHead(nn.Module):
    """norm(activation(W · x)): what the classes are read off."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width, bias=config.bias)
        self.norm = _norm(config)


class ModernBert(nn.Module):
    """Token ids and lengths in, one logit a class out. A text's answer does not depend on the padding beside it."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.model = ModernBertBody(config)
        self.head = ModernBertHead(config)
        self.classifier = nn.Linear(config.width, len(config.labels))
        initialise(self, config.initializer_range, config.layers, branch_ends=("Wo.weight",))
        self.register_buffer("frequency_P", rope_frequencies(config.head_width, config.rope_theta), persistent=False)

    def forward(self, token_BT: Tensor, length_B: Tensor) -> Tensor:
        """Classifies a padded batch.

        Args:
            token_BT: token ids; what lies at or after a row's length is padding and may be any token.
            length_B: how many tokens of each row count. A row without any is treated as one padding token.

        Returns:
            Logits of shape (B, C).
        """
        dropout, training = self.config.dropout, self.training
        position_T = torch.arange(token_BT.shape[1], device=token_BT.device)
        here_BT = position_T < length_B.clamp(min=1)[:, None]
        rope = rope_table(self.get_buffer("frequency_P"), position_T)
        token_BT = without_words(token_BT, dropout if training else 0.0, self.config.pad_token_id)
        x_BTD = self.model.embeddings.norm(self.model.embeddings.tok_embeddings(token_BT))
        x_BTD = F.dropout(x_BTD, dropout, training)
        for layer in self.model.layers:
            x_BTD = layer(x_BTD, rope, here_BT[:, None, None, :])
        x_BTD = self.model.final_norm(x_BTD)
        x_BD = x_BTD[:, 0] if self.config.pooling == "cls" else mean_pool(x_BTD, here_BT)
        y_BD = self.head.norm(ACTIVATIONS[self.config.activation](self.head.dense(x_BD)))
        logit_BC: Tensor = self.classifier(F.dropout(y_BD, dropout, training))
        return logit_BC


def mean_pool(x_BTD: Tensor, here_BT: Tensor) -> Tensor:
    """The mean of the tokens that are there: (B, D)."""
    return x_BTD.masked_fill(~here_BT[:, :, None], 0.0).sum(1) / here_BT.sum(1, keepdim=True)


def without_words(token_BT: Tensor, rate: float, pad_token_id: int) -> Tensor:
    """Replaces tokens by padding at this rate, so that in training no single word decides alone."""
    if rate == 0:
        return token_BT
    return token_BT.masked_fill(torch.rand(token_BT.shape, device=token_BT.device) < rate, pad_token_id)

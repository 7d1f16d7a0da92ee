"""Our text classifier: a bidirectional Transformer encoder with mean and max pooling. Shapes: see layers.py.

The trainer trains this module and the server runs it as it is:
    model = load(directory).module(); model(token_BT, length_B) -> logit_BC
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kubeformer_runtime.model.config import ClassifierConfig
from kubeformer_runtime.model.layers import Attention, GatedMLP, PlainMLP, initialise, rope_frequencies, rope_table


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); dropout on both branches while training."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config.width, config.heads, config.key_value_heads, config.head_width, bias=True)
        self.mlp_norm = nn.LayerNorm(config.width, config.norm_epsilon)
        self.mlp: nn.Module
        if config.activation == "SwiGLU":
            self.mlp = GatedMLP(config.width, config.mlp_width, bias=True)
        else:
            self.mlp = PlainMLP(config.width, config.mlp_width, config.activation)
        self.dropout = config.dropout

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor] | None, mask_B11T: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        attended_BTD = self.attention(self.attention_norm(x_BTD), rope, mask_B11T, causal=False)
        x_BTD = x_BTD + F.dropout(attended_BTD, self.dropout, self.training)
        thought_BTD = self.mlp(self.mlp_norm(x_BTD))
        return x_BTD + F.dropout(thought_BTD, self.dropout, self.training)


class Classifier(nn.Module):
    """Token ids and lengths in, one logit a class out. A text's answer does not depend on the padding beside it."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary_size, config.width)
        self.embed_positions = nn.Embedding(config.max_length, config.width) if config.positions == "Learned" else None
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.norm_epsilon)
        self.head = nn.Linear(2 * config.width, len(config.labels))
        initialise(self, config.initializer_range, config.layers)
        frequency_P = rope_frequencies(config.head_width, config.rope_theta)
        self.register_buffer("frequency_P", frequency_P, persistent=False)

    def forward(self, token_BT: Tensor, length_B: Tensor) -> Tensor:
        """Classifies a padded batch.

        Args:
            token_BT: integer token ids; what lies at or after a row's length is padding and may be anything
                inside the vocabulary. T must not exceed config.max_length.
            length_B: how many tokens of each row count. A row without any is treated as one padding token.

        Returns:
            Logits of shape (B, C).
        """
        t = token_BT.shape[1]
        position_T = torch.arange(t, device=token_BT.device)
        here_BT = position_T < length_B.clamp(min=1)[:, None]
        x_BTD = self.embed_tokens(self._with_words_missing(token_BT))
        rope = None
        if self.embed_positions is not None:
            x_BTD = x_BTD + self.embed_positions(position_T)
        else:
            rope = rope_table(self.get_buffer("frequency_P"), position_T)
        x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rope, here_BT[:, None, None, :])
        logit_BC: Tensor = self.head(F.dropout(pool(self.norm(x_BTD), here_BT), self.config.dropout, self.training))
        return logit_BC

    def _with_words_missing(self, token_BT: Tensor) -> Tensor:
        """While training, replaces tokens by padding at the rate of dropout, so that no single word decides alone."""
        if not self.training or self.config.dropout == 0:
            return token_BT
        missing_BT = torch.rand(token_BT.shape, device=token_BT.device) < self.config.dropout
        return token_BT.masked_fill(missing_BT, self.config.pad_token_id)


def pool(x_BTD: Tensor, here_BT: Tensor) -> Tensor:
    """Mean beside maximum over the tokens that are there: (B, 2 · D).

    The mean says what a text is about; the maximum lets one telling word decide.
    """
    absent_BT1 = ~here_BT[:, :, None]
    mean_BD = x_BTD.masked_fill(absent_BT1, 0.0).sum(1) / here_BT.sum(1, keepdim=True)
    largest_BD = x_BTD.masked_fill(absent_BT1, float("-inf")).amax(1)
    return torch.cat((mean_BD, largest_BD), dim=-1)

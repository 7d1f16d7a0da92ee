"""BERT and its family as classifiers to train on: from BERT, RoBERTa, DistilBERT, MiniLM to a head of one's own.

    model = Bert(config, dropout=0.1); logit_BC = model(token_BT, length_B)

The same computation as encoder.py's, which serves these models, as a module whose weights learn. A text is read both
ways; its first token, <s> or [CLS], stands for the whole. The norm stands after each branch, as in 2017.
Source: https://arxiv.org/abs/1810.04805. Shapes: layers.py. Weights are called as encoder.py calls them;
`names_in_file` gives Hugging Face's.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kubeformer_runtime.model.encoder import FUNCTIONS, UNUSED, our_name
from kubeformer_runtime.model.encoder_config import EncoderConfig, Family
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.layers import initialise

DEVIATION = 0.02  # of what begins at random, BERT's own

# Hugging Face's names by ours; {} is the number of a layer.
_COMMON = {
    "word": "embeddings.word_embeddings.weight",
    "position": "embeddings.position_embeddings.weight",
    "token_type": "embeddings.token_type_embeddings.weight",
    "norm": "embeddings.LayerNorm",
}
_BERT_LAYER = {
    "query": "encoder.layer.{}.attention.self.query",
    "key": "encoder.layer.{}.attention.self.key",
    "value": "encoder.layer.{}.attention.self.value",
    "out": "encoder.layer.{}.attention.output.dense",
    "attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "up": "encoder.layer.{}.intermediate.dense",
    "down": "encoder.layer.{}.output.dense",
    "mlp_norm": "encoder.layer.{}.output.LayerNorm",
}
_DISTILBERT_LAYER = {
    "query": "transformer.layer.{}.attention.q_lin",
    "key": "transformer.layer.{}.attention.k_lin",
    "value": "transformer.layer.{}.attention.v_lin",
    "out": "transformer.layer.{}.attention.out_lin",
    "attention_norm": "transformer.layer.{}.sa_layer_norm",
    "up": "transformer.layer.{}.ffn.lin1",
    "down": "transformer.layer.{}.ffn.lin2",
    "mlp_norm": "transformer.layer.{}.output_layer_norm",
}
_HEADS: Mapping[Family, Mapping[str, str]] = {
    "bert": {"head": "bert.pooler.dense", "classes": "classifier"},
    "roberta": {"head": "classifier.dense", "classes": "classifier.out_proj"},
    "distilbert": {"head": "pre_classifier", "classes": "classifier"},
}


class BertLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: EncoderConfig, dropout: float) -> None:
        super().__init__()
        d, f = config.width, config.mlp_width
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))
        self.attention_norm = nn.LayerNorm(d, config.norm_epsilon)
        self.up, self.down = nn.Linear(d, f), nn.Linear(f, d)
        self.mlp_norm = nn.LayerNorm(d, config.norm_epsilon)
        self.heads, self.dropout, self.activation = config.heads, dropout, FUNCTIONS[config.activation]

    def forward(self, x_BTD: Tensor, mask_B11T: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        b, t, d = x_BTD.shape
        q_BHTW, k_BHTW, v_BHTW = (
            projection(x_BTD).view(b, t, self.heads, -1).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        y_BHTW = F.scaled_dot_product_attention(q_BHTW, k_BHTW, v_BHTW, mask_B11T)
        y_BTD = self.out(y_BHTW.transpose(1, 2).reshape(b, t, d))
        x_BTD = self.attention_norm(x_BTD + F.dropout(y_BTD, self.dropout, self.training))
        y_BTD = self.down(self.activation(self.up(x_BTD)))
        x_BTD = self.mlp_norm(x_BTD + F.dropout(y_BTD, self.dropout, self.training))
        return x_BTD


class Bert(nn.Module):
    """Token ids and lengths in, one logit a class out. `dropout` is used in training only, not part of the model."""

    def __init__(self, config: EncoderConfig, dropout: float = 0.0) -> None:
        super().__init__()
        if not config.labels:
            raise ModelError("this encoder has no classes to tell apart; give it a head (with_head)")
        self.config, self.dropout = config, dropout
        d = config.width
        self.word = nn.Parameter(torch.empty(config.vocabulary_size, d))
        self.position = nn.Parameter(torch.empty(config.positions, d))
        self.token_type = nn.Parameter(torch.empty(config.types, d)) if config.types else None
        self.norm = nn.LayerNorm(d, config.norm_epsilon)
        self.layers = nn.ModuleList(BertLayer(config, dropout) for _ in range(config.layers))
        self.head, self.classes = nn.Linear(d, d), nn.Linear(d, len(config.labels))
        initialise(self, DEVIATION, config.layers, branch_ends=())

    def forward(self, token_BT: Tensor, length_B: Tensor) -> Tensor:
        """Classifies a padded batch of single texts.

        Args:
            token_BT: token ids; what lies at or after a row's length is padding and may be any token.
                T must not exceed config.max_length.
            length_B: how many tokens of each row count. A row without any is treated as one padding token.

        Returns:
            Logits of shape (B, C).
        """
        config, t = self.config, token_BT.shape[1]
        here_BT = torch.arange(t, device=token_BT.device) < length_B.clamp(min=1)[:, None]
        x_BTD = F.embedding(token_BT, self.word) + self.position[config.first_position : config.first_position + t]
        if self.token_type is not None:
            x_BTD = x_BTD + self.token_type[0]  # of the first of two texts, here the only one
        x_BTD = F.dropout(self.norm(x_BTD), self.dropout, self.training)
        for layer in self.layers:
            x_BTD = layer(x_BTD, here_BT[:, None, None, :])
        middle_BD = self.head(x_BTD[:, 0])
        middle_BD = F.relu(middle_BD) if config.family == "distilbert" else torch.tanh(middle_BD)
        logit_BC: Tensor = self.classes(F.dropout(middle_BD, self.dropout, self.training))
        return logit_BC


def from_file(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, without heads of pre-training."""
    return {our_name(name): tensor for name, tensor in weights.items() if UNUSED.search(name) is None}


def names_in_file(config: EncoderConfig) -> dict[str, str]:
    """Hugging Face's name of every tensor, by ours."""
    layer_names = _DISTILBERT_LAYER if config.family == "distilbert" else _BERT_LAYER
    parts = {"norm": f"{config.family}.{_COMMON['norm']}"}
    parts |= {
        f"layers.{index}.{ours}": f"{config.family}.{theirs.format(index)}"
        for index in range(config.layers)
        for ours, theirs in layer_names.items()
    }
    parts |= _HEADS[config.family]
    names = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in parts.items() for kind in ("weight", "bias")}
    tables = ("word", "position", "token_type") if config.types else ("word", "position")
    return names | {table: f"{config.family}.{_COMMON[table]}" for table in tables}


def with_head(config: EncoderConfig, weights: Mapping[str, Tensor], labels: tuple[str, ...], dropout: float) -> Bert:
    """A classifier of these labels over a pretrained encoder.

    Its own head stays where it has the same labels; otherwise the classes begin anew, and so does the layer before
    them where the encoder brings none (RoBERTa and DistilBERT before any fine-tuning).
    """
    model = Bert(replace(config, labels=labels, problem="single_label"), dropout)
    kept = {name: tensor for name, tensor in weights.items() if config.labels == labels or name[:8] != "classes."}
    model.load_state_dict(kept, strict=False)
    return model.eval()


def without_head(name: str) -> bool:
    """Whether a weight of this name belongs to the encoder itself."""
    return not name.startswith(("head.", "classes."))

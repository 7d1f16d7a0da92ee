"""A sequential recommender: which item comes next in a user's sequence. SASRec, https://arxiv.org/abs/1808.09781.

    network = Recommender(RecommenderConfig(items=("Alien", "Brazil", ...), width=64, layers=2, heads=2, max_length=50))
    score_BI = network.scores(network(item_BT), length_B)      # one score an item for the place after the last

A decoder without words: its tokens are items, its head is the item table again. Item 0 is padding and stands after a
sequence's end; item i is `items[i - 1]`. Every place sees the places before it and itself, so one pass over a sequence
trains every next item in it. Unlike the paper, which tells the true next item from one drawn at random, it is trained
as a language model is, by cross-entropy over all items: better where these are thousands, not millions.

Shapes: B sequences, T items of the longest, D width, H heads, W width of a head, I items with padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kubeformer.contract.names import Reason
from kubeformer_runtime.model.config import CONFIG_FILE
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.reading import Fields, read_json

ARCHITECTURE = "KubeformerForSequentialRecommendation"
PADDING = 0
DEVIATION = 0.02  # of the first weights, as in BERT


@dataclass(frozen=True, slots=True)
class RecommenderConfig:
    """Sizes, and the items by name."""

    items: tuple[str, ...]  # item i of the table is items[i - 1]
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_length: int  # of longer sequences the last so many items count
    dropout: float = 0.0  # in training only: of embeddings, attention weights and branches

    @property
    def vocabulary_size(self) -> int:
        """Rows of the item table: padding and the items."""
        return len(self.items) + 1

    @property
    def key_value_heads(self) -> int:
        """As many as heads."""
        return self.heads

    def check(self) -> None:
        """Raises ModelError where the numbers do not fit together."""
        for name in ("width", "layers", "heads", "mlp_width", "max_length"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} is {getattr(self, name)}; it has to be 1 or more")
        if self.width % self.heads:
            raise ModelError(f"width {self.width} cannot be split evenly over {self.heads} heads")
        if len(self.items) < 2:
            raise ModelError(f"a recommender needs two items or more, not {len(self.items)}")

    def to_json(self) -> dict[str, Any]:
        """config.json, in Hugging Face's words where it has them."""
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "kubeformer-recommender",
            "vocab_size": self.vocabulary_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp_width,
            "max_position_embeddings": self.max_length,
            "dropout": self.dropout,
            "pad_token_id": PADDING,
            "items": list(self.items),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "RecommenderConfig":
        """Raises ModelError for fields that are missing, of the wrong kind, or do not fit together."""
        fields, items = Fields(CONFIG_FILE, document), document.get("items")
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ModelError(f"{CONFIG_FILE}: items is no list of names; publish the recommender again")
        config = cls(
            items=tuple(items),
            width=fields.integer("hidden_size"),
            layers=fields.integer("num_hidden_layers"),
            heads=fields.integer("num_attention_heads"),
            mlp_width=fields.integer("intermediate_size"),
            max_length=fields.integer("max_position_embeddings"),
            dropout=fields.number("dropout", 0.0),
        )
        config.check()
        return config


class RecommenderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); nothing looks ahead."""

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.qkv_proj = nn.Linear(config.width, 3 * config.width)
        self.o_proj = nn.Linear(config.width, config.width)
        self.up_proj = nn.Linear(config.width, config.mlp_width)
        self.down_proj = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self._dropped(self._attend(self.attention_norm(x_BTD)))
        thought_BTD = self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x_BTD))))
        return x_BTD + self._dropped(thought_BTD)

    def _attend(self, x_BTD: Tensor) -> Tensor:
        b, t, d = x_BTD.shape
        q_BHTW, k_BHTW, v_BHTW = self.qkv_proj(x_BTD).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Padding stands at the end, where no item that counts can look.
        dropout = self.dropout if self.training else 0.0
        y_BHTW = F.scaled_dot_product_attention(q_BHTW, k_BHTW, v_BHTW, is_causal=True, dropout_p=dropout)
        y_BTD: Tensor = self.o_proj(y_BHTW.transpose(1, 2).reshape(b, t, d))
        return y_BTD

    def _dropped(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(x_BTD, self.dropout, self.training)


class Recommender(nn.Module):
    """Items in, one vector a place out; its product with the item table scores what comes next."""

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.embed_items = nn.Embedding(config.vocabulary_size, config.width)
        self.embed_positions = nn.Embedding(config.max_length, config.width)
        self.embedding_norm = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(RecommenderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, DEVIATION)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, item_BT: Tensor) -> Tensor:
        """(B, T) items, padding after the end, T at most max_length; returns one vector a place, (B, T, D)."""
        x_BTD = self.embed_items(item_BT) + self.embed_positions.weight[: item_BT.shape[1]]
        x_BTD = F.dropout(self.embedding_norm(x_BTD), self.config.dropout, self.training)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        y_BTD: Tensor = self.norm(x_BTD)
        return y_BTD

    def logits(self, y_ND: Tensor) -> Tensor:
        """(N, I): a score of every item; of padding minus infinity."""
        logit_NI = F.linear(y_ND, self.embed_items.weight)
        return logit_NI.index_fill(1, torch.tensor([PADDING], device=logit_NI.device), float("-inf"))

    def scores(self, y_BTD: Tensor, length_B: Tensor) -> Tensor:
        """(B, I): scores for the place after the last item of each sequence."""
        row_B = torch.arange(len(y_BTD), device=y_BTD.device)
        return self.logits(y_BTD[row_B, length_B - 1])

    @torch.no_grad()
    def recommend(self, history: Sequence[str], count: int, *, seen: bool = False) -> list[tuple[str, float]]:
        """The `count` likeliest next items with their log-probabilities, likeliest first.

        Items that the table does not know are passed over. `seen`: whether items of the history may come again.

        Raises:
            ModelError: no item of the history is known.
        """
        number = {name: index for index, name in enumerate(self.config.items, start=1)}
        known = [number[name] for name in history if name in number]
        if not known:
            raise ModelError(f"none of the {len(history)} items of the history is among the model's items")
        item_1T = torch.tensor([known[-self.config.max_length :]], device=self.embed_items.weight.device)
        score_I = self.scores(self(item_1T), torch.tensor([item_1T.shape[1]]))[0].float().log_softmax(0)
        if not seen:
            score_I[known] = float("-inf")
        best = score_I.topk(min(count, len(self.config.items)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.config.items[index - 1], score) for index, score in pairs if score > float("-inf")]


def load_recommender(directory: str | Path) -> Recommender:
    """The recommender that a job published, in evaluation mode.

    Raises:
        ModelError: there is none, it is damaged, or it is a model of another kind.
    """
    from kubeformer_runtime.model.weights import read_weights

    directory = Path(directory)
    if not (directory / CONFIG_FILE).is_file():
        raise ModelError(f"there is no {CONFIG_FILE} in {directory}", Reason.MODEL_NOT_FOUND)
    document = read_json(directory / CONFIG_FILE)
    if ARCHITECTURE not in (document.get("architectures") or []):
        raise ModelError(f"{directory} holds {document.get('architectures')}, not a recommender ({ARCHITECTURE})")
    network = Recommender(RecommenderConfig.from_json(document))
    try:
        network.load_state_dict(read_weights(directory, torch.float32))
    except RuntimeError as error:
        raise ModelError(f"the weights in {directory} do not fit its {CONFIG_FILE}: {error}") from None
    return network.eval()

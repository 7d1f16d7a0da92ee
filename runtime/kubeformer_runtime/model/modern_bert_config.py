"""ModernBertConfig: our text classifier from the beginning, and the way from and to its config.json.

The layout is ModernBERT's (ModernBertForSequenceClassification), which transformers and vLLM load as it is: rotary
positions, a norm before each branch, a gated MLP, mean pooling. What a config.json asks for beyond that (local
attention, above all) is refused by name. Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from kubeformer_runtime.model.decoder_config import CONFIG_FILE, MOST_LAYERS
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.labels import labels_to_json, read_labels
from kubeformer_runtime.model.reading import LARGEST, Fields

MODERN_BERT_ARCHITECTURE = "ModernBertForSequenceClassification"
GateActivation = Literal["ReLU", "GELU", "SiLU"]
GATE_ACTIVATIONS: dict[str, GateActivation] = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}
Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True)
class ModernBertConfig:
    """A bidirectional encoder with a classification head."""

    vocabulary_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_length: int  # longer texts are cut after this many tokens
    labels: tuple[str, ...]  # index = class
    activation: GateActivation = "GELU"  # of the MLP's gate and of the head
    pooling: Pooling = "mean"
    rope_theta: float = 10000.0
    dropout: float = 0.1  # used in training only: of tokens, embeddings and branches
    norm_epsilon: float = 1e-5
    norm_bias: bool = True
    bias: bool = True  # of every linear layer
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    initializer_range: float = 0.02

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ModernBertConfig":
        """Reads a config.json.

        Raises:
            ModelError: a field is missing or damaged, or asks for something that nobody here computes.
        """
        fields = Fields(CONFIG_FILE, document)
        layers = fields.integer("num_hidden_layers")
        kinds = document.get("layer_types")
        everywhere = fields.integer("global_attn_every_n_layers", 3) == 1 if kinds is None else set(kinds) == _FULL
        if not everywhere and layers > 1:
            raise ModelError(f"{CONFIG_FILE}: some layers have local attention; here every layer sees the whole text")
        activation = fields.text("hidden_activation", "gelu")
        head = fields.text("classifier_activation", "gelu")
        if activation not in GATE_ACTIVATIONS or head != activation:
            raise ModelError(
                f"{CONFIG_FILE}: hidden_activation is {activation!r} and classifier_activation {head!r}; both have to "
                f"be the same one of {', '.join(GATE_ACTIVATIONS)}"
            )
        biases = {fields.flag(name, False) for name in ("attention_bias", "mlp_bias", "classifier_bias")}
        if len(biases) > 1:
            raise ModelError(f"{CONFIG_FILE}: attention_bias, mlp_bias and classifier_bias have to be the same here")
        pooling = fields.text("classifier_pooling", "cls")
        if pooling not in ("mean", "cls"):
            raise ModelError(f"{CONFIG_FILE}: classifier_pooling is {pooling!r}; known are mean and cls")
        config = cls(
            vocabulary_size=fields.integer("vocab_size"),
            width=fields.integer("hidden_size"),
            layers=layers,
            heads=fields.integer("num_attention_heads"),
            mlp_width=fields.integer("intermediate_size"),
            max_length=fields.integer("max_position_embeddings"),
            labels=read_labels(fields),
            activation=GATE_ACTIVATIONS[activation],
            pooling=cast(Pooling, pooling),
            rope_theta=_theta(fields),
            dropout=fields.number("embedding_dropout", 0.0),
            norm_epsilon=fields.positive("norm_eps", 1e-5),
            norm_bias=fields.flag("norm_bias", False),
            bias=biases.pop(),
            pad_token_id=fields.token_id("pad_token_id") or 0,
            bos_token_id=fields.token_id("bos_token_id"),
            eos_token_id=next(iter(fields.token_ids("eos_token_id")), None),
            initializer_range=fields.number("initializer_range", 0.02),
        )
        config.check()
        return config

    def check(self) -> None:
        """Raises ModelError where the numbers do not fit together."""
        for name in ("vocabulary_size", "width", "layers", "heads", "mlp_width", "max_length"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ModelError(f"{name} is {getattr(self, name)}; it has to be 1 or more, and {LARGEST} at most")
        if self.layers > MOST_LAYERS:
            raise ModelError(f"layers is {self.layers}; there can be {MOST_LAYERS} at most")
        if self.width % self.heads:
            raise ModelError(f"width {self.width} cannot be split evenly over {self.heads} heads")
        if self.head_width % 2:
            raise ModelError(f"a head is {self.head_width} wide; rotary positions need an even number")
        if len(self.labels) < 2:
            raise ModelError(f"a classifier needs two labels or more, not {len(self.labels)}")

    def to_json(self) -> dict[str, Any]:
        """config.json as transformers reads it; both spellings of what changed with version 5."""
        activation = next(name for name, ours in GATE_ACTIVATIONS.items() if ours == self.activation)
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        return {
            "architectures": [MODERN_BERT_ARCHITECTURE],
            "model_type": "modernbert",
            "problem_type": "single_label_classification",
            "vocab_size": self.vocabulary_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp_width,
            "max_position_embeddings": self.max_length,
            "hidden_activation": activation,
            "classifier_activation": activation,
            "classifier_pooling": self.pooling,
            "layer_types": ["full_attention"] * self.layers,
            "global_attn_every_n_layers": 1,
            "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
            "global_rope_theta": self.rope_theta,
            "local_rope_theta": self.rope_theta,
            "embedding_dropout": self.dropout,
            "mlp_dropout": self.dropout,
            "classifier_dropout": self.dropout,
            "attention_dropout": 0.0,
            "norm_eps": self.norm_epsilon,
            "norm_bias": self.norm_bias,
            "attention_bias": self.bias,
            "mlp_bias": self.bias,
            "classifier_bias": self.bias,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "cls_token_id": self.bos_token_id,
            "sep_token_id": self.eos_token_id,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": True,
            **labels_to_json(self.labels),
        }


_FULL = {"full_attention"}


def _theta(fields: Fields) -> float:
    """The rotary base: transformers 5 keeps one for each kind of attention, 4 in fields of their own."""
    full = Fields(CONFIG_FILE, fields.mapping("rope_parameters")).mapping("full_attention")
    return Fields(CONFIG_FILE, full).positive("rope_theta", fields.positive("global_rope_theta", 160000.0))

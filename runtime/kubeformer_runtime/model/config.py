"""config.json of a model directory as frozen dataclasses; here ours of before ModernBERT's layout, and the choice.

`read_config(directory)` gives the one that `architectures` names; `to_json()` gives back what Hugging Face's
`transformers` and vLLM read. Fields carry our own plain names; the JSON carries Hugging Face's.
Standard library only, so that a server can look at a model before it loads torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from kubeformer.contract.names import Reason
from kubeformer_runtime.model.decoder_classifier_config import (
    DECODER_CLASSIFIERS,
    DecoderClassifierConfig,
    architecture_of,
)
from kubeformer_runtime.model.decoder_config import (
    ARCHITECTURES,
    CONFIG_FILE,
    MOST_LAYERS,
    LlamaConfig,
    RopeScaling,
    family_of,
)
from kubeformer_runtime.model.encoder_config import FAMILIES, EncoderConfig, encoder_config
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.modern_bert_config import MODERN_BERT_ARCHITECTURE, ModernBertConfig
from kubeformer_runtime.model.reading import Fields, read_json
from kubeformer_runtime.model.seq2seq_config import SEQ2SEQ_ARCHITECTURES, Seq2SeqConfig, layout_of

GENERATION_FILE = "generation_config.json"
CLASSIFIER_ARCHITECTURE = "KubeformerForSequenceClassification"

Activation = Literal["ReLU", "GELU", "SwiGLU"]
Positions = Literal["Rotary", "Learned"]


@dataclass(frozen=True, slots=True)
class ClassifierConfig:
    """Our first text classifier, in a layout of our own: mean and max pooling, one linear layer.

    What was published with it is still served and trained on; new ones are ModernBertConfig's.
    """

    vocabulary_size: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    mlp_width: int
    max_length: int  # longer texts are cut after this many tokens
    labels: tuple[str, ...]  # index = class
    activation: Activation = "GELU"
    positions: Positions = "Rotary"
    rope_theta: float = 10000.0
    dropout: float = 0.1  # used in training only: of tokens, embeddings and branches
    norm_epsilon: float = 1e-5
    pad_token_id: int = 0
    initializer_range: float = 0.02

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ClassifierConfig":
        """Reads what `to_json` wrote.

        Raises:
            ModelError: a field is missing or has no meaning here.
        """
        fields = Fields(CONFIG_FILE, document)
        names = fields.mapping("id2label")
        try:
            labels = tuple(str(names[str(index)]) for index in range(len(names)))
        except KeyError as error:
            raise ModelError(f"{CONFIG_FILE}: id2label has no entry for class {error}; number them from 0") from None
        activation, positions = fields.text("hidden_act", "GELU"), fields.text("positions", "Rotary")
        for name, value, known in (("hidden_act", activation, Activation), ("positions", positions, Positions)):
            if value not in get_args(known):
                raise ModelError(f"{CONFIG_FILE}: {name} is {value!r}; known are {', '.join(get_args(known))}")
        heads = fields.integer("num_attention_heads")
        config = cls(
            vocabulary_size=fields.integer("vocab_size"),
            width=fields.integer("hidden_size"),
            layers=fields.integer("num_hidden_layers"),
            heads=heads,
            key_value_heads=fields.integer("num_key_value_heads", heads),
            mlp_width=fields.integer("intermediate_size"),
            max_length=fields.integer("max_position_embeddings"),
            labels=labels,
            activation=cast(Activation, activation),
            positions=cast(Positions, positions),
            rope_theta=fields.positive("rope_theta", 10000.0),
            dropout=fields.number("dropout", 0.0),
            norm_epsilon=fields.positive("layer_norm_eps", 1e-5),
            pad_token_id=fields.token_id("pad_token_id") or 0,
            initializer_range=fields.number("initializer_range", 0.02),
        )
        config.check()
        return config

    def check(self) -> None:
        """Raises ModelError where the numbers do not fit together."""
        for name in ("vocabulary_size", "width", "layers", "heads", "key_value_heads", "mlp_width", "max_length"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} is {getattr(self, name)}; it has to be 1 or more")
        if self.layers > MOST_LAYERS:
            raise ModelError(f"layers is {self.layers}; there can be {MOST_LAYERS} at most")
        if self.width % self.heads:
            raise ModelError(f"width {self.width} cannot be split evenly over {self.heads} heads")
        if self.heads % self.key_value_heads:
            raise ModelError(f"{self.heads} heads cannot share {self.key_value_heads} key-value heads evenly")
        if self.positions == "Rotary" and self.head_width % 2:
            raise ModelError(f"a head is {self.head_width} wide; rotary positions need an even number")
        if len(self.labels) < 2:
            raise ModelError(f"a classifier needs two labels or more, not {len(self.labels)}")

    def to_json(self) -> dict[str, Any]:
        """config.json in Hugging Face's words where it has them."""
        return {
            "architectures": [CLASSIFIER_ARCHITECTURE],
            "model_type": "kubeformer-classifier",
            "problem_type": "single_label_classification",
            "vocab_size": self.vocabulary_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "intermediate_size": self.mlp_width,
            "max_position_embeddings": self.max_length,
            "hidden_act": self.activation,
            "positions": self.positions,
            "rope_theta": self.rope_theta,
            "dropout": self.dropout,
            "layer_norm_eps": self.norm_epsilon,
            "pad_token_id": self.pad_token_id,
            "initializer_range": self.initializer_range,
            "id2label": {str(index): label for index, label in enumerate(self.labels)},
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }


ModelConfig = (
    LlamaConfig | ClassifierConfig | ModernBertConfig | EncoderConfig | DecoderClassifierConfig | Seq2SeqConfig
)


def read_config(directory: str | Path) -> ModelConfig:
    """Reads DIRECTORY/config.json.

    Raises:
        ModelError: no such directory or file (reason ModelNotFound); not JSON, an architecture we do not
            know, or fields that do not fit together (reason ModelInvalid).
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelError(f"there is no model directory {directory}", Reason.MODEL_NOT_FOUND)
    document = read_json(directory / CONFIG_FILE)
    if family_of(document) is not None:
        # generation_config.json, where a model has one, knows better when an answer ends.
        if (directory / GENERATION_FILE).is_file():
            ends = read_json(directory / GENERATION_FILE).get("eos_token_id")
            document = {**document, "eos_token_id": ends if ends is not None else document.get("eos_token_id")}
        return LlamaConfig.from_json(document)
    if layout_of(document) is not None:
        if (directory / GENERATION_FILE).is_file():
            document = {**document, "suppress_tokens": read_json(directory / GENERATION_FILE).get("suppress_tokens")}
        return Seq2SeqConfig.from_json(document)
    if architecture_of(document) is not None:
        return DecoderClassifierConfig.from_json(document)
    if isinstance(kind := document.get("model_type"), str) and kind in FAMILIES:
        return encoder_config(document)
    names = document.get("architectures")
    if isinstance(names, list) and MODERN_BERT_ARCHITECTURE in names:
        return ModernBertConfig.from_json(document)
    if isinstance(names, list) and CLASSIFIER_ARCHITECTURE in names:
        return ClassifierConfig.from_json(document)
    known = (*ARCHITECTURES, *DECODER_CLASSIFIERS, *SEQ2SEQ_ARCHITECTURES, MODERN_BERT_ARCHITECTURE)
    raise ModelError(
        f"{directory / CONFIG_FILE}: model_type is {document.get('model_type')!r} and architectures is "
        f"{names}; supported are {', '.join(known)}, and BERT, RoBERTa and DistilBERT"
    )


__all__ = [
    "CONFIG_FILE",
    "GENERATION_FILE",
    "ClassifierConfig",
    "DecoderClassifierConfig",
    "EncoderConfig",
    "LlamaConfig",
    "ModelConfig",
    "ModernBertConfig",
    "RopeScaling",
    "Seq2SeqConfig",
    "read_config",
    "read_json",
]

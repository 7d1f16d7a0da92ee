"""config.json of a model directory as frozen dataclasses: Llama-family decoders and our classifier.

`read_config(directory)` gives the one that `architectures` names; `to_json()` gives back what Hugging Face's
`transformers` and vLLM read. Fields carry our own plain names; the JSON carries Hugging Face's.
Standard library only, so that a server can look at a model before it loads torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kubeformer.contract.names import Reason
from kubeformer_runtime.model.errors import ModelError

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
LLAMA_ARCHITECTURE = "LlamaForCausalLM"
CLASSIFIER_ARCHITECTURE = "KubeformerForSequenceClassification"

Activation = Literal["ReLU", "GELU", "SwiGLU"]
Positions = Literal["Rotary", "Learned"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length a model was first trained for.

    `kind` "linear" divides every frequency by `factor`; "llama3" divides the low ones, keeps the high ones and
    blends between (Llama 3.1's rule; the last three fields belong to it).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_length: int = 8192


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """A Llama-family decoder; Hugging Face's words: hidden_size, head_dim, max_position_embeddings and so on."""

    vocabulary_size: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    mlp_width: int
    max_length: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    tied_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    initializer_range: float = 0.02

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "LlamaConfig":
        """Reads Hugging Face's LlamaConfig, of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).

        Raises:
            ModelError: a field is missing, or asks for something that no Llama of ours does.
        """
        activation = document.get("hidden_act", "silu")
        if activation != "silu":
            raise ModelError(f"{CONFIG_FILE}: hidden_act is {activation!r}; Llama-family models here use 'silu'")
        heads, width = _integer(document, "num_attention_heads"), _integer(document, "hidden_size")
        theta, scaling = _read_rope(document)
        config = cls(
            vocabulary_size=_integer(document, "vocab_size"),
            width=width,
            layers=_integer(document, "num_hidden_layers"),
            heads=heads,
            key_value_heads=int(document.get("num_key_value_heads") or heads),
            head_width=int(document.get("head_dim") or width // heads),
            mlp_width=_integer(document, "intermediate_size"),
            max_length=int(document.get("max_position_embeddings", 2048)),
            rope_theta=theta,
            rope_scaling=scaling,
            norm_epsilon=float(document.get("rms_norm_eps", 1e-6)),
            tied_embeddings=bool(document.get("tie_word_embeddings", False)),
            attention_bias=bool(document.get("attention_bias", False)),
            mlp_bias=bool(document.get("mlp_bias", False)),
            bos_token_id=document.get("bos_token_id"),
            eos_token_ids=_token_ids(document.get("eos_token_id")),
            pad_token_id=document.get("pad_token_id"),
            initializer_range=float(document.get("initializer_range", 0.02)),
        )
        config.check()
        return config

    def check(self) -> None:
        """Raises ModelError where the numbers do not fit together."""
        _positive(self, ("vocabulary_size", "width", "layers", "heads", "key_value_heads", "head_width", "mlp_width"))
        if self.heads % self.key_value_heads:
            raise ModelError(f"{self.heads} heads cannot share {self.key_value_heads} key-value heads evenly")
        if self.head_width % 2:
            raise ModelError(f"a head is {self.head_width} wide; rotary positions need an even number")

    def to_json(self) -> dict[str, Any]:
        """Hugging Face's config.json; both spellings of the rotary base, so that every version reads it."""
        rope: dict[str, Any] = {"rope_theta": self.rope_theta, "rope_type": "default"}
        if (scaling := self.rope_scaling) is not None:
            rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
            if scaling.kind == "llama3":
                rope |= {
                    "low_freq_factor": scaling.low_frequency_factor,
                    "high_freq_factor": scaling.high_frequency_factor,
                    "original_max_position_embeddings": scaling.original_max_length,
                }
        return {
            "architectures": [LLAMA_ARCHITECTURE],
            "model_type": "llama",
            "vocab_size": self.vocabulary_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_width,
            "intermediate_size": self.mlp_width,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_length,
            "rope_theta": self.rope_theta,
            "rope_parameters": rope,
            "rms_norm_eps": self.norm_epsilon,
            "tie_word_embeddings": self.tied_embeddings,
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "mlp_bias": self.mlp_bias,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": _token_ids_to_json(self.eos_token_ids),
            "pad_token_id": self.pad_token_id,
            "initializer_range": self.initializer_range,
        }


@dataclass(frozen=True, slots=True)
class ClassifierConfig:
    """Our text classifier: a bidirectional Transformer encoder, mean and max pooling, one linear layer."""

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
        names = document.get("id2label") or {}
        try:
            labels = tuple(str(names[str(index)]) for index in range(len(names)))
        except KeyError as error:
            raise ModelError(f"{CONFIG_FILE}: id2label has no entry for class {error}; number them from 0") from None
        activation, positions = document.get("hidden_act", "GELU"), document.get("positions", "Rotary")
        if activation not in get_args(Activation):
            raise ModelError(
                f"{CONFIG_FILE}: hidden_act is {activation!r}; known are {', '.join(get_args(Activation))}"
            )
        if positions not in get_args(Positions):
            raise ModelError(f"{CONFIG_FILE}: positions is {positions!r}; known are {', '.join(get_args(Positions))}")
        heads = _integer(document, "num_attention_heads")
        config = cls(
            vocabulary_size=_integer(document, "vocab_size"),
            width=_integer(document, "hidden_size"),
            layers=_integer(document, "num_hidden_layers"),
            heads=heads,
            key_value_heads=int(document.get("num_key_value_heads") or heads),
            mlp_width=_integer(document, "intermediate_size"),
            max_length=_integer(document, "max_position_embeddings"),
            labels=labels,
            activation=activation,
            positions=positions,
            rope_theta=float(document.get("rope_theta", 10000.0)),
            dropout=float(document.get("dropout", 0.0)),
            norm_epsilon=float(document.get("layer_norm_eps", 1e-5)),
            pad_token_id=int(document.get("pad_token_id") or 0),
            initializer_range=float(document.get("initializer_range", 0.02)),
        )
        config.check()
        return config

    def check(self) -> None:
        """Raises ModelError where the numbers do not fit together."""
        _positive(self, ("vocabulary_size", "width", "layers", "heads", "key_value_heads", "mlp_width", "max_length"))
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


ModelConfig = LlamaConfig | ClassifierConfig


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
    names = document.get("architectures") or []
    if LLAMA_ARCHITECTURE in names:
        # generation_config.json, where a model has one, knows better when an answer ends.
        if (directory / GENERATION_FILE).is_file():
            ends = read_json(directory / GENERATION_FILE).get("eos_token_id")
            document = {**document, "eos_token_id": ends if ends is not None else document.get("eos_token_id")}
        return LlamaConfig.from_json(document)
    if CLASSIFIER_ARCHITECTURE in names:
        return ClassifierConfig.from_json(document)
    raise ModelError(
        f"{directory / CONFIG_FILE}: architectures is {names}; "
        f"known are {LLAMA_ARCHITECTURE} and {CLASSIFIER_ARCHITECTURE}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object, or raises ModelError."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}", Reason.MODEL_NOT_FOUND) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ModelError(f"{path} is not a JSON object")
    return document


def _read_rope(document: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """The rotary base and its scaling: transformers 5 keeps both in rope_parameters, 4 apart."""
    parameters = {**(document.get("rope_scaling") or {}), **(document.get("rope_parameters") or {})}
    theta = float(parameters.get("rope_theta") or document.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    try:
        if kind == "default":
            return theta, None
        if kind == "linear":
            return theta, RopeScaling("linear", float(parameters["factor"]))
        if kind == "llama3":
            return theta, RopeScaling(
                "llama3",
                factor=float(parameters["factor"]),
                low_frequency_factor=float(parameters["low_freq_factor"]),
                high_frequency_factor=float(parameters["high_freq_factor"]),
                original_max_length=int(parameters["original_max_position_embeddings"]),
            )
    except KeyError as error:
        raise ModelError(f"{CONFIG_FILE}: rotary scaling {kind!r} needs {error}, which is not there") from None
    raise ModelError(f"{CONFIG_FILE}: rotary scaling {kind!r} is not known here; known are default, linear and llama3")


def _integer(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(f"{CONFIG_FILE}: {name} has to be an integer, not {value!r}")
    return value


def _positive(config: ModelConfig, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ModelError(f"{name} is {getattr(config, name)}; it has to be 1 or more")


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _token_ids_to_json(ids: tuple[int, ...]) -> int | list[int] | None:
    if not ids:
        return None
    return ids[0] if len(ids) == 1 else list(ids)

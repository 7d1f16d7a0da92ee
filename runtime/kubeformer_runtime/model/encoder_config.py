"""config.json of an encoder's directory: BERT, RoBERTa (also XLM-R, CamemBERT), DistilBERT. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kubeformer_runtime.model.decoder_config import CONFIG_FILE
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.labels import labels_to_json, read_labels
from kubeformer_runtime.model.reading import LARGEST, Fields, read_json

Family = Literal["bert", "roberta", "distilbert"]
Problem = Literal["single_label", "multi_label", "regression"]

FAMILIES: Mapping[str, Family] = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "distilbert": "distilbert",
}
EMBEDDING_SUFFIXES = ("Model", "ForMaskedLM", "ForPreTraining")
HEAD_SUFFIX = "ForSequenceClassification"
PROBLEMS: Mapping[str, Problem] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """What config.json says. `labels` is empty where the directory holds no classification head."""

    family: Family
    vocabulary_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    positions: int  # rows of the position table
    first_position: int  # RoBERTa begins to count after its padding token
    types: int  # kinds of segments; 0: the family has none
    activation: str
    norm_epsilon: float
    pad_token_id: int
    labels: tuple[str, ...]
    problem: Problem
    matryoshka: tuple[int, ...] | bool  # widths to which embeddings may be cut; True: any

    @property
    def max_length(self) -> int:
        """Tokens a text may have."""
        return self.positions - self.first_position

    def to_json(self) -> dict[str, Any]:
        """config.json of a classifier of the family (of an encoder without a head where there are no labels).

        XLM-RoBERTa and CamemBERT are written as RoBERTa, which computes the same.
        """
        names = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
        problem = next(name for name, ours in PROBLEMS.items() if ours == self.problem)
        short = self.family == "distilbert"
        document: dict[str, Any] = {
            "architectures": [names[self.family] + (HEAD_SUFFIX if self.labels else "Model")],
            "model_type": self.family,
            "vocab_size": self.vocabulary_size,
            "dim" if short else "hidden_size": self.width,
            "n_layers" if short else "num_hidden_layers": self.layers,
            "n_heads" if short else "num_attention_heads": self.heads,
            "hidden_dim" if short else "intermediate_size": self.mlp_width,
            "activation" if short else "hidden_act": self.activation,
            "max_position_embeddings": self.positions,
            "pad_token_id": self.pad_token_id,
        }
        if not short:
            document |= {"type_vocab_size": self.types, "layer_norm_eps": self.norm_epsilon}
        if self.labels:
            document |= {"problem_type": problem, **labels_to_json(self.labels)}
        return document


def is_encoder(directory: Path) -> bool:
    """Whether config.json names one of the families. Raises ModelError where it cannot be read."""
    kind = read_json(directory / CONFIG_FILE).get("model_type")
    return isinstance(kind, str) and kind in FAMILIES


def read_encoder_config(directory: Path) -> EncoderConfig:
    """Reads DIRECTORY/config.json; see encoder_config."""
    return encoder_config(read_json(directory / CONFIG_FILE))


def encoder_config(document: Mapping[str, Any]) -> EncoderConfig:
    """Reads a config.json.

    Raises:
        ModelError: a field is missing or damaged, or asks for what these families do not do here.
    """
    fields = Fields(CONFIG_FILE, document)
    family = FAMILIES[fields.text("model_type")]
    architecture = _architecture(fields)
    if (kind := fields.text("position_embedding_type", "absolute")) != "absolute":
        raise ModelError(f"{CONFIG_FILE}: position_embedding_type is {kind!r}; encoders here know 'absolute'")
    if fields.flag("is_decoder", False):
        raise ModelError(f"{CONFIG_FILE}: is_decoder is true; a decoder of the {family} family is not served here")
    short = family == "distilbert"  # this family has field names of its own
    activation = fields.text("activation" if short else "hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise ModelError(f"{CONFIG_FILE}: the activation is {activation!r}; known are {', '.join(ACTIVATIONS)}")
    pad = fields.token_id("pad_token_id")
    if pad is None:
        pad = 1 if family == "roberta" else 0
    config = EncoderConfig(
        family=family,
        vocabulary_size=fields.integer("vocab_size"),
        width=fields.integer("dim" if short else "hidden_size"),
        layers=fields.integer("n_layers" if short else "num_hidden_layers"),
        heads=fields.integer("n_heads" if short else "num_attention_heads"),
        mlp_width=fields.integer("hidden_dim" if short else "intermediate_size"),
        positions=fields.integer("max_position_embeddings"),
        first_position=pad + 1 if family == "roberta" else 0,
        types=0 if short else fields.integer("type_vocab_size", 2),
        activation=activation,
        norm_epsilon=1e-12 if short else fields.positive("layer_norm_eps", 1e-12),
        pad_token_id=pad,
        labels=read_labels(fields) if architecture.endswith(HEAD_SUFFIX) else (),
        problem=_problem(fields),
        matryoshka=_matryoshka(fields),
    )
    if config.width % config.heads:
        raise ModelError(f"{CONFIG_FILE}: a width of {config.width} cannot be shared by {config.heads} heads evenly")
    if config.pad_token_id >= config.vocabulary_size or config.max_length < 1:
        raise ModelError(
            f"{CONFIG_FILE}: pad_token_id is {pad}, which does not fit {config.vocabulary_size} tokens and "
            f"{config.positions} positions"
        )
    return config


def _architecture(fields: Fields) -> str:
    names = fields.document.get("architectures") or ["Model"]
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str) or not name.endswith((*EMBEDDING_SUFFIXES, HEAD_SUFFIX)):
        raise ModelError(
            f"{CONFIG_FILE}: architectures is {str(names)[:80]}; encoders are served as "
            f"{', '.join(EMBEDDING_SUFFIXES)} (embeddings) or {HEAD_SUFFIX}"
        )
    return name


def _problem(fields: Fields) -> Problem:
    """What logits mean: config.json's own word, else the activation that sentence-transformers noted there."""
    if fields.has("problem_type"):
        kind = fields.text("problem_type")
        if kind not in PROBLEMS:
            raise ModelError(f"{CONFIG_FILE}: problem_type is {kind!r}; known are {', '.join(PROBLEMS)}")
        return PROBLEMS[kind]
    noted = fields.mapping("sentence_transformers").get("activation_fn")
    noted = str(noted or fields.text("sbert_ce_default_activation_function", ""))
    if noted.endswith("Identity"):
        return "regression"
    return "multi_label" if noted.endswith("Sigmoid") else "single_label"


def _matryoshka(fields: Fields) -> tuple[int, ...] | bool:
    """As vLLM reads it: a list of widths, or a flag that says that any will do."""
    if not fields.has("matryoshka_dimensions"):
        return fields.flag("is_matryoshka", False)
    widths: Any = fields.document["matryoshka_dimensions"]
    if not isinstance(widths, list) or not all(type(width) is int and 1 <= width <= LARGEST for width in widths):
        raise ModelError(f"{CONFIG_FILE}: matryoshka_dimensions has to be a list of widths, not {str(widths)[:80]}")
    return tuple(sorted(widths))

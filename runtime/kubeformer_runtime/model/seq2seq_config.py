"""Seq2SeqConfig: what an encoder-decoder is, and the way from and to its config.json.

Two layouts of Hugging Face's, which differ in one thing: where the norm stands.

    MarianMTModel                     after each branch, as in 2017: norm(x + branch(x))
    PegasusForConditionalGeneration   before it, and once more at the end: x + branch(norm(x))

Both have sinusoidal positions, a plain MLP, and one embedding for source, target and output. What a config.json
asks for beyond that is refused by name. Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from kubeformer_runtime.model.decoder_config import CONFIG_FILE, MOST_LAYERS
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.reading import LARGEST, Fields

Layout = Literal["marian", "pegasus"]
Seq2SeqActivation = Literal["ReLU", "GELU", "GELUTanh", "SiLU"]
SEQ2SEQ_ARCHITECTURES: dict[str, Layout] = {
    "MarianMTModel": "marian",
    "PegasusForConditionalGeneration": "pegasus",
}
SEQ2SEQ_ACTIVATIONS: dict[str, Seq2SeqActivation] = {
    "relu": "ReLU",
    "gelu": "GELU",
    "gelu_new": "GELUTanh",
    "swish": "SiLU",
    "silu": "SiLU",
}


@dataclass(frozen=True, slots=True)
class Seq2SeqConfig:
    """An encoder-decoder. Source and target share vocabulary and embedding."""

    vocabulary_size: int
    width: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    mlp_width: int
    max_length: int  # tokens of a source, and of a target with the token it begins with
    eos_token_id: int
    pad_token_id: int
    start_token_id: int  # every target begins with it; it is never generated
    bos_token_id: int | None = None
    activation: Seq2SeqActivation = "ReLU"
    layout: Layout = "marian"
    scaled_embeddings: bool = True  # times the root of the width, as in 2017
    dropout: float = 0.1  # used in training only: of embeddings and branches
    initializer_range: float = 0.02
    suppressed: tuple[int, ...] = ()  # tokens that are never generated

    @property
    def norm_first(self) -> bool:
        """Whether the norm stands before each branch."""
        return self.layout == "pegasus"

    @property
    def head_width(self) -> int:
        """Width of one attention head, the formula's d_k."""
        return self.width // self.heads

    @property
    def layers(self) -> int:
        """Of both halves together."""
        return self.encoder_layers + self.decoder_layers

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Seq2SeqConfig":
        """Reads a config.json of either layout.

        Raises:
            ModelError: a field is missing or damaged, or asks for something that nobody here computes.
        """
        layout = layout_of(document)
        if layout is None:
            raise ModelError(f"{CONFIG_FILE}: this is no encoder-decoder of {', '.join(SEQ2SEQ_ARCHITECTURES)}")
        fields = Fields(CONFIG_FILE, document)
        for name in ("share_encoder_decoder_embeddings", "tie_word_embeddings"):
            if not fields.flag(name, True):
                raise ModelError(f"{CONFIG_FILE}: {name} is false; source, target and output share one embedding here")
        vocabulary = fields.integer("vocab_size")
        if fields.integer("decoder_vocab_size", vocabulary) != vocabulary:
            raise ModelError(f"{CONFIG_FILE}: decoder_vocab_size is not vocab_size; both sides share theirs here")
        halves = [
            (fields.integer(f"{half}_attention_heads", 16), fields.integer(f"{half}_ffn_dim", 4096))
            for half in ("encoder", "decoder")
        ]
        if halves[0] != halves[1]:
            raise ModelError(
                f"{CONFIG_FILE}: encoder and decoder differ in attention_heads or ffn_dim; give them equal"
            )
        wanted = fields.text("activation_function", "gelu")
        if wanted not in SEQ2SEQ_ACTIVATIONS:
            known = ", ".join(SEQ2SEQ_ACTIVATIONS)
            raise ModelError(f"{CONFIG_FILE}: activation_function is {wanted!r}; known are {known}")
        ends, pad = fields.token_ids("eos_token_id"), fields.token_id("pad_token_id")
        start = fields.token_id("decoder_start_token_id")
        for name, value in (("eos_token_id", ends), ("pad_token_id", pad), ("decoder_start_token_id", start)):
            if value is None or value == ():
                raise ModelError(f"{CONFIG_FILE}: {name} is missing; an encoder-decoder needs it")
        config = cls(
            vocabulary_size=vocabulary,
            width=fields.integer("d_model", 1024),
            encoder_layers=fields.integer("encoder_layers", 12),
            decoder_layers=fields.integer("decoder_layers", 12),
            heads=halves[0][0],
            mlp_width=halves[0][1],
            max_length=fields.integer("max_position_embeddings", 1024),
            eos_token_id=ends[0],
            pad_token_id=cast(int, pad),
            start_token_id=cast(int, start),
            bos_token_id=fields.token_id("bos_token_id"),
            activation=SEQ2SEQ_ACTIVATIONS[wanted],
            layout=layout,
            scaled_embeddings=fields.flag("scale_embedding", False),
            dropout=fields.number("dropout", 0.1),
            initializer_range=fields.number("init_std", 0.02),
            suppressed=_suppressed(fields),
        )
        config.check()
        return config

    def check(self) -> None:
        """Raises ModelError where the numbers do not fit together."""
        names = ("vocabulary_size", "width", "encoder_layers", "decoder_layers", "heads", "mlp_width", "max_length")
        for name in names:
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ModelError(f"{name} is {getattr(self, name)}; it has to be 1 or more, and {LARGEST} at most")
        if self.layers > MOST_LAYERS:
            raise ModelError(f"there are {self.layers} layers; there can be {MOST_LAYERS} at most")
        if self.width % self.heads:
            raise ModelError(f"width {self.width} cannot be split evenly over {self.heads} heads")
        if self.width % 2:
            raise ModelError(f"width {self.width} is odd; sinusoidal positions take sines and cosines in pairs")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"dropout is {self.dropout}; it has to be 0 or more, and below 1")
        for name in ("eos_token_id", "pad_token_id", "start_token_id"):
            if not 0 <= getattr(self, name) < self.vocabulary_size:
                raise ModelError(
                    f"{name} is {getattr(self, name)}, outside the {self.vocabulary_size} tokens there are"
                )

    def to_json(self) -> dict[str, Any]:
        """config.json as transformers reads it."""
        activation = next(name for name, ours in SEQ2SEQ_ACTIVATIONS.items() if ours == self.activation)
        halves = {
            f"{half}_{name}": value
            for half in ("encoder", "decoder")
            for name, value in (("attention_heads", self.heads), ("ffn_dim", self.mlp_width), ("layerdrop", 0.0))
        }
        return {
            "architectures": [next(name for name, layout in SEQ2SEQ_ARCHITECTURES.items() if layout == self.layout)],
            "model_type": self.layout,
            "is_encoder_decoder": True,
            "vocab_size": self.vocabulary_size,
            "d_model": self.width,
            "encoder_layers": self.encoder_layers,
            "decoder_layers": self.decoder_layers,
            **halves,
            "max_position_embeddings": self.max_length,
            "activation_function": activation,
            "scale_embedding": self.scaled_embeddings,
            "share_encoder_decoder_embeddings": True,
            "tie_word_embeddings": True,
            "dropout": self.dropout,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "init_std": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "forced_eos_token_id": None,
            "pad_token_id": self.pad_token_id,
            "decoder_start_token_id": self.start_token_id,
        }

    def generation_to_json(self) -> dict[str, Any]:
        """generation_config.json: how transformers generates, greedily and as `generate` here does."""
        document = {
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "decoder_start_token_id": self.start_token_id,
            "suppress_tokens": list(self.suppressed) or None,
            "max_length": self.max_length,
        }
        return {name: value for name, value in document.items() if value is not None}


def layout_of(document: Mapping[str, Any]) -> Layout | None:
    """The layout that `architectures`, or without it `model_type`, names; None: not an encoder-decoder known here."""
    names = document.get("architectures")
    if isinstance(names, list) and names:
        return next((SEQ2SEQ_ARCHITECTURES[name] for name in map(str, names) if name in SEQ2SEQ_ARCHITECTURES), None)
    return next((layout for layout in SEQ2SEQ_ARCHITECTURES.values() if layout == document.get("model_type")), None)


def _suppressed(fields: Fields) -> tuple[int, ...]:
    """suppress_tokens, and the words of one token among bad_words_ids (Marian's checkpoints name <pad> there)."""
    words = fields.document.get("bad_words_ids")
    single = [word[0] for word in words if isinstance(word, list) and len(word) == 1] if isinstance(words, list) else []
    wanted = (
        *fields.token_ids("suppress_tokens"),
        *Fields(CONFIG_FILE, {"bad_words_ids": single}).token_ids("bad_words_ids"),
    )
    return tuple(dict.fromkeys(wanted))

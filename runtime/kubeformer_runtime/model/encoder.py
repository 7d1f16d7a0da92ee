"""Encoders as Hugging Face's directories hold them: BERT, RoBERTa (also XLM-R and CamemBERT), DistilBERT.

    encoder = load_encoder_weights(directory, torch.float32)
    x_BTD = encoder(token_BT, type_BT, length_B)      # one vector a token
    logit_BC = encoder.classify(x_BTD)                # where the directory holds a classification head

The three families differ in names, in where positions begin and in the head; the layers are the same. A text's
vectors do not depend on the padding beside it. Shapes: B rows, T tokens, D width, H heads, W width of a head,
C classes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kubeformer_runtime.model.config import CONFIG_FILE, read_json
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.weights import OnBytes, read_weights

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
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
# Hugging Face's names to ours: first what all families share, then BERT's and RoBERTa's, then DistilBERT's.
RENAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(bert|roberta|distilbert)\.", ""),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),  # of checkpoints that once were TensorFlow's
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
        (r"^embeddings\.LayerNorm\.", "norm."),
        (r"^embeddings\.(word|position|token_type)_embeddings\.weight$", r"\1"),
        (r"^(encoder|transformer)\.layer\.", "layers."),
        (r"\.attention\.self\.(query|key|value)\.", r".\1."),
        (r"\.attention\.output\.dense\.", ".out."),
        (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
        (r"\.intermediate\.dense\.", ".up."),
        (r"^(layers\.\d+)\.output\.dense\.", r"\1.down."),
        (r"^(layers\.\d+)\.output\.LayerNorm\.", r"\1.mlp_norm."),
        (r"\.attention\.q_lin\.", ".query."),
        (r"\.attention\.k_lin\.", ".key."),
        (r"\.attention\.v_lin\.", ".value."),
        (r"\.attention\.out_lin\.", ".out."),
        (r"\.sa_layer_norm\.", ".attention_norm."),
        (r"\.ffn\.lin1\.", ".up."),
        (r"\.ffn\.lin2\.", ".down."),
        (r"\.output_layer_norm\.", ".mlp_norm."),
        (r"^(pooler|classifier)\.dense\.|^pre_classifier\.", "head."),
        (r"^classifier\.(out_proj\.)?", "classes."),
    )
)
# Parts of a directory that an encoder has no use for: heads of pre-training, and buffers that old exports carry.
UNUSED = re.compile(r"^(cls|lm_head|vocab_\w+|qa_outputs)\.|position_ids$")


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


def is_encoder(directory: Path) -> bool:
    """Whether config.json names one of the families. Raises ModelError where it cannot be read."""
    return read_json(directory / CONFIG_FILE).get("model_type") in FAMILIES


def read_encoder_config(directory: Path) -> EncoderConfig:
    """Reads DIRECTORY/config.json.

    Raises:
        ModelError: a field is missing, or asks for what these families do not do here.
    """
    document = read_json(directory / CONFIG_FILE)
    family = FAMILIES[document["model_type"]]
    architecture = str((document.get("architectures") or ["Model"])[0])
    if not architecture.endswith((*EMBEDDING_SUFFIXES, HEAD_SUFFIX)):
        raise ModelError(
            f"{CONFIG_FILE}: architectures is {architecture}; encoders are served as {', '.join(EMBEDDING_SUFFIXES)} "
            f"(embeddings) or {HEAD_SUFFIX}"
        )
    if (kind := document.get("position_embedding_type", "absolute")) != "absolute":
        raise ModelError(f"{CONFIG_FILE}: position_embedding_type is {kind!r}; encoders here know 'absolute'")
    if document.get("is_decoder"):
        raise ModelError(f"{CONFIG_FILE}: is_decoder is true; a decoder of the {family} family is not served here")
    short = family == "distilbert"  # this family has field names of its own
    activation = str(document.get("activation" if short else "hidden_act", "gelu"))
    if activation not in ACTIVATIONS:
        raise ModelError(
            f"{CONFIG_FILE}: the activation {activation!r} is not known; known are {', '.join(ACTIVATIONS)}"
        )
    pad = document.get("pad_token_id")
    pad = (1 if family == "roberta" else 0) if pad is None else int(pad)
    config = EncoderConfig(
        family=family,
        vocabulary_size=_integer(document, "vocab_size"),
        width=_integer(document, "dim" if short else "hidden_size"),
        layers=_integer(document, "n_layers" if short else "num_hidden_layers"),
        heads=_integer(document, "n_heads" if short else "num_attention_heads"),
        mlp_width=_integer(document, "hidden_dim" if short else "intermediate_size"),
        positions=_integer(document, "max_position_embeddings"),
        first_position=pad + 1 if family == "roberta" else 0,
        types=0 if short else int(document.get("type_vocab_size", 2)),
        activation=activation,
        norm_epsilon=1e-12 if short else float(document.get("layer_norm_eps", 1e-12)),
        pad_token_id=pad,
        labels=_labels(document) if architecture.endswith(HEAD_SUFFIX) else (),
        problem=_problem(document),
        matryoshka=_matryoshka(document),
    )
    if config.width % config.heads:
        raise ModelError(f"{CONFIG_FILE}: a width of {config.width} cannot be shared by {config.heads} heads evenly")
    return config


def _labels(document: Mapping[str, Any]) -> tuple[str, ...]:
    names = document.get("id2label")
    if isinstance(names, dict) and names:
        try:
            return tuple(str(names[key]) for key in sorted(names, key=int))
        except ValueError:
            raise ModelError(f"{CONFIG_FILE}: id2label has keys that are no numbers") from None
    return tuple(f"LABEL_{index}" for index in range(int(document.get("num_labels", 2))))


def _problem(document: Mapping[str, Any]) -> Problem:
    """What logits mean: config.json's own word, else the activation that sentence-transformers noted there."""
    if (kind := document.get("problem_type")) is not None:
        if kind not in PROBLEMS:
            raise ModelError(f"{CONFIG_FILE}: problem_type is {kind!r}; known are {', '.join(PROBLEMS)}")
        return PROBLEMS[kind]
    noted = (document.get("sentence_transformers") or {}).get("activation_fn")
    noted = str(noted or document.get("sbert_ce_default_activation_function") or "")
    if noted.endswith("Identity"):
        return "regression"
    return "multi_label" if noted.endswith("Sigmoid") else "single_label"


def _matryoshka(document: Mapping[str, Any]) -> tuple[int, ...] | bool:
    """As vLLM reads it: a list of widths, or a flag that says that any will do."""
    if widths := document.get("matryoshka_dimensions"):
        return tuple(sorted(int(width) for width in widths))
    return bool(document.get("is_matryoshka", False))


def _integer(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{CONFIG_FILE}: {name} has to be a whole number of at least 1, not {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's tensors; query, key and value are one matrix (3 D, D)."""

    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    attention_norm: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    mlp_norm: tuple[Tensor, Tensor]


class Encoder:
    """Token ids, segment ids and lengths in; one vector a token out. For inference only."""

    def __init__(self, config: EncoderConfig, weights: Mapping[str, Tensor]) -> None:
        """`weights` under our names (see RENAMES). Raises ModelError where they are not what the config asks for."""
        check_weights(config, weights)
        self.config = config
        self._word, self._position = weights["word"], weights["position"]
        self._type = weights["token_type"] if config.types else None
        self._norm = _pair(weights, "norm")
        self._layers = [_layer(weights, f"layers.{index}") for index in range(config.layers)]
        self._head = _pair(weights, "head") if config.labels else None
        self._classes = _pair(weights, "classes") if config.labels else None
        self._activation = ACTIVATIONS[config.activation]

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self._word.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self._word.dtype

    def __call__(self, token_BT: Tensor, type_BT: Tensor, length_B: Tensor) -> Tensor:
        """Last hidden states (B, T, D) of a padded batch.

        Args:
            token_BT: token ids; what lies at or after a row's length is padding, any token will do.
            type_BT: segment ids, 0 for the first text and 1 for the second; not looked at where a family has none.
            length_B: how many tokens of each row count, at least 1. T must not exceed config.max_length.
        """
        config, t = self.config, token_BT.shape[1]
        place_T = torch.arange(t, device=token_BT.device)
        x_BTD = F.embedding(token_BT, self._word) + self._position[config.first_position : config.first_position + t]
        if self._type is not None:
            x_BTD = x_BTD + F.embedding(type_BT, self._type)
        x_BTD = self._normalise(x_BTD, self._norm)
        mask_B11T: Tensor | None = None  # where nothing is padded PyTorch has a quicker kernel
        if bool((length_B < t).any()):
            mask_B11T = (place_T < length_B[:, None])[:, None, None, :]
        for layer in self._layers:
            x_BTD = self._normalise(x_BTD + self._attend(x_BTD, layer, mask_B11T), layer.attention_norm)
            x_BTD = self._normalise(
                x_BTD + F.linear(self._activation(F.linear(x_BTD, *layer.up)), *layer.down), layer.mlp_norm
            )
        return x_BTD

    def classify(self, x_BTD: Tensor) -> Tensor:
        """Logits (B, C) from last hidden states; the head looks at the first token."""
        if self._head is None or self._classes is None:
            raise ValueError("this encoder has no classification head")
        middle_BD = F.linear(x_BTD[:, 0], *self._head)
        middle_BD = F.relu(middle_BD) if self.config.family == "distilbert" else torch.tanh(middle_BD)
        return F.linear(middle_BD, *self._classes)

    def _attend(self, x_BTD: Tensor, layer: Layer, mask_B11T: Tensor | None) -> Tensor:
        b, t, d = x_BTD.shape
        qkv_3BHTW = F.linear(x_BTD, *layer.qkv).view(b, t, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
        y_BHTW = F.scaled_dot_product_attention(qkv_3BHTW[0], qkv_3BHTW[1], qkv_3BHTW[2], mask_B11T)
        return F.linear(y_BHTW.transpose(1, 2).reshape(b, t, d), *layer.out)

    def _normalise(self, x_BTD: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x_BTD, (self.config.width,), *norm, self.config.norm_epsilon)


def load_encoder_weights(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_bytes: OnBytes | None = None,
) -> Encoder:
    """Reads and checks a whole directory; `on_bytes` hears the size of each tensor that was read.

    Raises:
        ModelError: something is missing, damaged, or does not fit.
    """
    config = read_encoder_config(directory)
    pooler = config.family == "bert" and config.labels  # else it is of no use: embeddings are pooled otherwise
    weights = {
        our_name(name): tensor
        for name, tensor in read_weights(directory, dtype, device, on_bytes).items()
        if UNUSED.search(name) is None and (pooler or "pooler." not in name)
    }
    return Encoder(config, weights)


def our_name(name: str) -> str:
    """Hugging Face's name of a tensor in our words; unknown names stay as they are."""
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name


def check_weights(config: EncoderConfig, weights: Mapping[str, Tensor]) -> None:
    """Raise ModelError where names or shapes are not those of an encoder with this config."""
    d, f = config.width, config.mlp_width
    shapes: dict[str, tuple[int, ...]] = {"word": (config.vocabulary_size, d), "position": (config.positions, d)}
    if config.types:
        shapes["token_type"] = (config.types, d)
    vectors = {"norm": d}
    matrices: dict[str, tuple[int, ...]] = {}
    for index in range(config.layers):
        prefix = f"layers.{index}"
        matrices |= {f"{prefix}.{name}": (d, d) for name in ("query", "key", "value", "out")}
        matrices |= {f"{prefix}.up": (f, d), f"{prefix}.down": (d, f)}
        vectors |= {f"{prefix}.attention_norm": d, f"{prefix}.mlp_norm": d}
    if config.labels:
        matrices |= {"head": (d, d), "classes": (len(config.labels), d)}
    for name, shape in matrices.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, length in vectors.items():
        shapes |= {f"{name}.weight": (length,), f"{name}.bias": (length,)}
    if missing := sorted(shapes.keys() - weights.keys()):
        raise ModelError(f"the weights lack {_some(missing)}, which {CONFIG_FILE} asks for")
    if extra := sorted(weights.keys() - shapes.keys()):
        raise ModelError(f"the weights hold {_some(extra)}, which {CONFIG_FILE} does not know")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise ModelError(f"{name} has shape {tuple(weights[name].shape)}, but {CONFIG_FILE} makes it {shape}")


def _pair(weights: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _layer(weights: Mapping[str, Tensor], prefix: str) -> Layer:
    parts = [_pair(weights, f"{prefix}.{name}") for name in ("query", "key", "value")]
    return Layer(
        qkv=(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
        out=_pair(weights, f"{prefix}.out"),
        attention_norm=_pair(weights, f"{prefix}.attention_norm"),
        up=_pair(weights, f"{prefix}.up"),
        down=_pair(weights, f"{prefix}.down"),
        mlp_norm=_pair(weights, f"{prefix}.mlp_norm"),
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

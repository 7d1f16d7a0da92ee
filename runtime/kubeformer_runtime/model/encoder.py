"""Encoders as Hugging Face's directories hold them: BERT, RoBERTa (also XLM-R and CamemBERT), DistilBERT.

    encoder = load_encoder_weights(directory, torch.float32)
    x_BTD = encoder(token_BT, type_BT, length_B)      # one vector a token
    logit_BC = encoder.classify(x_BTD)                # where the directory holds a classification head

The three families differ in names, in where positions begin and in the head; the layers are the same. A text's
vectors do not depend on the padding beside it. Shapes: B rows, T tokens, D width, H heads, W width of a head,
C classes, N rows of all texts together.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from kubeformer_runtime.model.decoder_config import CONFIG_FILE
from kubeformer_runtime.model.encoder_config import EncoderConfig, read_encoder_config
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.files import OnBytes, check_values, read_weights

FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {  # of encoder_config.ACTIVATIONS
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


Linear = Callable[[Tensor], Tensor]  # (N, in) to (N, out)
MakeLinear = Callable[[Tensor, Tensor], Linear]  # from weight (out, in) and bias


def plain_linear(weight: Tensor, bias: Tensor) -> Linear:
    """PyTorch's own linear layer."""
    return lambda x_ND: F.linear(x_ND, weight, bias)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer; query, key and value are one matrix (3 D, D)."""

    qkv: Linear
    out: Linear
    attention_norm: tuple[Tensor, Tensor]
    up: Linear
    down: Linear
    mlp_norm: tuple[Tensor, Tensor]


class Encoder:
    """Token ids, segment ids and lengths in; one vector a token out. For inference only."""

    def __init__(self, config: EncoderConfig, weights: Mapping[str, Tensor], linear: MakeLinear = plain_linear) -> None:
        """`weights` under our names (see RENAMES); `linear` makes what multiplies by them.

        Raises:
            ModelError: the weights are not what the config asks for.
        """
        check_weights(config, weights)
        self.config = config
        self._word, self._position = weights["word"], weights["position"]
        self._type = weights["token_type"] if config.types else None
        self._norm = _pair(weights, "norm")
        self._layers = [_layer(weights, f"layers.{index}", linear) for index in range(config.layers)]
        self._head = _pair(weights, "head") if config.labels else None
        self._classes = _pair(weights, "classes") if config.labels else None
        self._activation = FUNCTIONS[config.activation]

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
        config, (b, t) = self.config, token_BT.shape
        place_T = torch.arange(t, device=token_BT.device)
        x_BTD = F.embedding(token_BT, self._word) + self._position[config.first_position : config.first_position + t]
        if self._type is not None:
            x_BTD = x_BTD + F.embedding(type_BT, self._type)
        x_ND = self._normalise(x_BTD, self._norm).view(b * t, config.width)
        mask_B11T: Tensor | None = None  # where nothing is padded PyTorch has a quicker kernel
        if bool((length_B < t).any()):
            mask_B11T = (place_T < length_B[:, None])[:, None, None, :]
        for layer in self._layers:
            qkv_3BHTW = layer.qkv(x_ND).view(b, t, 3, config.heads, -1).permute(2, 0, 3, 1, 4)
            y_BHTW = F.scaled_dot_product_attention(qkv_3BHTW[0], qkv_3BHTW[1], qkv_3BHTW[2], mask_B11T)
            y_ND = layer.out(y_BHTW.transpose(1, 2).reshape(b * t, config.width))
            x_ND = self._normalise(x_ND + y_ND, layer.attention_norm)
            x_ND = self._normalise(x_ND + layer.down(self._activation(layer.up(x_ND))), layer.mlp_norm)
        return x_ND.view(b, t, config.width)

    def classify(self, x_BTD: Tensor) -> Tensor:
        """Logits (B, C) from last hidden states; the head looks at the first token."""
        if self._head is None or self._classes is None:
            raise ValueError("this encoder has no classification head")
        middle_BD = F.linear(x_BTD[:, 0], *self._head)
        middle_BD = F.relu(middle_BD) if self.config.family == "distilbert" else torch.tanh(middle_BD)
        return F.linear(middle_BD, *self._classes)

    def _normalise(self, x_ND: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x_ND, (self.config.width,), *norm, self.config.norm_epsilon)


def load_encoder_weights(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_bytes: OnBytes | None = None,
    linear: MakeLinear = plain_linear,
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
    check_values(weights)
    return Encoder(config, weights, linear)


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


def _layer(weights: Mapping[str, Tensor], prefix: str, linear: MakeLinear) -> Layer:
    parts = [_pair(weights, f"{prefix}.{name}") for name in ("query", "key", "value")]
    return Layer(
        qkv=linear(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
        out=linear(*_pair(weights, f"{prefix}.out")),
        attention_norm=_pair(weights, f"{prefix}.attention_norm"),
        up=linear(*_pair(weights, f"{prefix}.up")),
        down=linear(*_pair(weights, f"{prefix}.down")),
        mlp_norm=_pair(weights, f"{prefix}.mlp_norm"),
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

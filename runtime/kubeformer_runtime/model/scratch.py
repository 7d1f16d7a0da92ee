"""What a model from the beginning looks like: a few numbers and an activation to a config in a standard layout.

The activation picks the generation of Transformer, and with it the layout that everybody else loads:

    task                 SwiGLU                             ReLU, GELU
    decoder              Llama (LlamaForCausalLM)           GPT-2 (GPT2LMHeadModel)
    encoder-decoder      refused                            2017 (MarianMTModel)
    classifier           ModernBERT, its gate by the activation (ModernBertForSequenceClassification)

Llama's generation has rotary positions, RMSNorm and a gated MLP without biases; the older one has learned
positions, LayerNorm and the mission's MLP, W2 · activation(W1 · x + b1) + b2. Pure.
"""

from dataclasses import dataclass, replace

from kubeformer_runtime.model.config import Activation
from kubeformer_runtime.model.decoder_config import DecoderActivation, LlamaConfig
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.modern_bert_config import GateActivation, ModernBertConfig
from kubeformer_runtime.model.seq2seq_config import Seq2SeqConfig

GATE: dict[Activation, GateActivation] = {"ReLU": "ReLU", "GELU": "GELU", "SwiGLU": "SiLU"}
GPT2_ACTIVATION: dict[Activation, DecoderActivation] = {"ReLU": "ReLU", "GELU": "GELUTanh"}


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers a user gives, as spec.model.architecture has them; None: the usual."""

    layers: int
    width: int
    heads: int
    key_value_heads: int | None = None  # None: as many as heads
    mlp_width: int | None = None  # None: 4 x width
    activation: Activation = "SwiGLU"

    @property
    def head_width(self) -> int:
        """Width of one head. Raises ModelError where the heads do not share the width evenly."""
        if self.heads < 1 or self.width % self.heads:
            raise ModelError(f"width {self.width} cannot be split over {self.heads} heads")
        return self.width // self.heads

    @property
    def inner_width(self) -> int:
        """Width of the MLP."""
        return self.mlp_width or 4 * self.width

    def refuse_shared_heads(self, layout: str) -> None:
        """Raises ModelError where fewer key-value heads are asked of a layout that has no grouped queries."""
        if self.key_value_heads not in (None, self.heads):
            raise ModelError(
                f"keyValueHeads is {self.key_value_heads} with {self.heads} heads, but {layout} knows no grouped "
                "queries: leave the field out, or set activation to SwiGLU"
            )


def decoder(
    shape: Shape,
    *,
    vocabulary_size: int,
    max_length: int,
    bos_token_id: int | None,
    eos_token_id: int | None,
    pad_token_id: int | None,
) -> LlamaConfig:
    """A language model: Llama where the activation is SwiGLU, GPT-2 where it is ReLU or GELU (its tanh form).

    Raises:
        ModelError: the numbers do not fit together.
    """
    config = LlamaConfig(
        vocabulary_size=vocabulary_size,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        key_value_heads=shape.key_value_heads or shape.heads,
        head_width=shape.head_width,
        mlp_width=shape.inner_width,
        max_length=max_length,
        bos_token_id=bos_token_id,
        eos_token_ids=() if eos_token_id is None else (eos_token_id,),
        pad_token_id=pad_token_id,
    )
    if shape.activation != "SwiGLU":
        shape.refuse_shared_heads("GPT-2's layout (activation ReLU or GELU)")
        config = replace(
            config,
            family="gpt2",
            norm="LayerNorm",
            positions="Learned",
            activation=GPT2_ACTIVATION[shape.activation],
            attention_bias=True,
            mlp_bias=True,
        )
    config.check()
    return config


def encoder_decoder(
    shape: Shape,
    *,
    vocabulary_size: int,
    max_length: int,
    bos_token_id: int | None,
    eos_token_id: int,
    pad_token_id: int,
    dropout: float = 0.1,
    norm_first: bool = False,
) -> Seq2SeqConfig:
    """The Transformer of 2017, with as many layers in the encoder as in the decoder.

    Targets begin with <bos>, or with <pad> where there is none (as Marian's do). `norm_first`: Pegasus's layout.

    Raises:
        ModelError: the numbers do not fit together, or the activation has a gate.
    """
    shape.refuse_shared_heads("an encoder-decoder")
    if shape.activation == "SwiGLU":
        raise ModelError(
            "activation is SwiGLU, but an encoder-decoder is the Transformer of 2017, whose MLP has no gate: set it to "
            "ReLU or GELU"
        )
    start = pad_token_id if bos_token_id is None else bos_token_id
    config = Seq2SeqConfig(
        vocabulary_size=vocabulary_size,
        width=shape.width,
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        heads=shape.heads,
        mlp_width=shape.inner_width,
        max_length=max_length,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        start_token_id=start,
        bos_token_id=bos_token_id,
        activation=shape.activation,
        layout="pegasus" if norm_first else "marian",
        dropout=dropout,
        suppressed=tuple(dict.fromkeys(token for token in (pad_token_id, start) if token != eos_token_id)),
    )
    config.check()
    return config


def classifier(
    shape: Shape,
    *,
    vocabulary_size: int,
    max_length: int,
    labels: tuple[str, ...],
    bos_token_id: int | None,
    eos_token_id: int | None,
    pad_token_id: int,
    dropout: float = 0.1,
) -> ModernBertConfig:
    """A text classifier: an encoder with rotary positions and a gated MLP, and the mean over a text's tokens.

    Raises:
        ModelError: the numbers do not fit together.
    """
    shape.refuse_shared_heads("ModernBERT's layout")
    config = ModernBertConfig(
        vocabulary_size=vocabulary_size,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        mlp_width=shape.inner_width,
        max_length=max_length,
        labels=labels,
        activation=GATE[shape.activation],
        dropout=dropout,
        pad_token_id=pad_token_id,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
    )
    config.check()
    return config

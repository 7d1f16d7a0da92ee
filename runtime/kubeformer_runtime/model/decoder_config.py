"""LlamaConfig: what a decoder is, for every family that runs here, and the way from and to its config.json.

A family is not a class: each is a row of features (norm, positions, activation, biases, window), and whoever
computes a model looks at the features alone. Families: Llama and SmolLM, Mistral, Qwen2, Qwen3, GPT-2. What a
config.json asks for and nobody here computes is refused by name. Defaults are those of `transformers`.
Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.reading import LARGEST, Fields

CONFIG_FILE = "config.json"
Family = Literal["llama", "mistral", "qwen2", "qwen3", "gpt2"]
Norm = Literal["RMSNorm", "LayerNorm"]
DecoderActivation = Literal["SwiGLU", "GELUTanh", "GELU", "ReLU"]
ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GPT2LMHeadModel": "gpt2",
}
GPT2_ACTIVATIONS: dict[str, DecoderActivation] = {
    "gelu_new": "GELUTanh",
    "gelu_pytorch_tanh": "GELUTanh",
    "gelu_fast": "GELUTanh",
    "gelu": "GELU",
    "relu": "ReLU",
}
MOST_LAYERS = 1000


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
    """A decoder; Hugging Face's words: hidden_size, head_dim, max_position_embeddings and so on.

    The defaults of the features are Llama's. Weights carry Llama's names whatever the family (see weights.py).
    """

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
    attention_bias: bool = False  # of the projections to q, k and v, and of the one to the output: see output_bias
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    family: Family = "llama"  # says how config.json and the file of weights are written, never what is computed
    norm: Norm = "RMSNorm"  # LayerNorm has a bias too
    positions: Literal["Rotary", "Learned"] = "Rotary"
    activation: DecoderActivation = "SwiGLU"  # SwiGLU has a gate beside the projection up, the others do not
    qk_norm: bool = False  # RMSNorm over each head of q and k, before the rotation
    output_bias: bool | None = None  # of the attention's output projection; None: as attention_bias
    sliding_window: int | None = None  # a token sees this many, itself among them; None: all
    first_sliding_layer: int = 0  # layers below it see everything

    @property
    def has_output_bias(self) -> bool:
        """Whether the attention's output projection has a bias."""
        return self.attention_bias if self.output_bias is None else self.output_bias

    def window_of(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees, itself among them; None: all before it."""
        return self.sliding_window if layer >= self.first_sliding_layer else None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "LlamaConfig":
        """Reads a config.json of any family, as transformers 4 and 5 write it.

        Raises:
            ModelError: a field is missing or damaged, or asks for something that nobody here computes.
        """
        family = family_of(document)
        if family is None:
            raise ModelError(f"{CONFIG_FILE}: this is no decoder of {', '.join(ARCHITECTURES)}")
        fields = Fields(CONFIG_FILE, document)
        if fields.has("quantization_config"):
            kind = fields.mapping("quantization_config").get("quant_method")
            raise ModelError(
                f"{CONFIG_FILE}: the weights are already quantised (quantization_config: {kind!r}); take the model "
                "in float32, float16 or bfloat16, and engine.quantization to quantise it here"
            )
        config = _read_gpt2(fields) if family == "gpt2" else _read_llama(fields, family)
        config.check()
        return config

    def check(self) -> None:
        """Raises ModelError where the numbers do not fit together."""
        for name in (
            *("vocabulary_size", "width", "layers", "heads", "key_value_heads", "head_width", "mlp_width"),
            *("max_length", "sliding_window"),
        ):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST:
                raise ModelError(f"{name} is {value}; it has to be 1 or more, and {LARGEST} at most")
        if self.layers > MOST_LAYERS:
            raise ModelError(f"layers is {self.layers}; there can be {MOST_LAYERS} at most")
        if self.heads % self.key_value_heads:
            raise ModelError(f"{self.heads} heads cannot share {self.key_value_heads} key-value heads evenly")
        if self.head_width % 2 and self.positions == "Rotary":
            raise ModelError(f"a head is {self.head_width} wide; rotary positions need an even number")

    def to_json(self) -> dict[str, Any]:
        """The family's config.json; both spellings of the rotary base, so that every version reads it."""
        document: dict[str, Any] = {
            "architectures": [next(name for name, family in ARCHITECTURES.items() if family == self.family)],
            "model_type": self.family,
            "vocab_size": self.vocabulary_size,
            "tie_word_embeddings": self.tied_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": _token_ids_to_json(self.eos_token_ids),
            "pad_token_id": self.pad_token_id,
            "initializer_range": self.initializer_range,
        }
        return document | (_write_gpt2(self) if self.family == "gpt2" else _write_llama(self))


def family_of(document: Mapping[str, Any]) -> Family | None:
    """The family that `architectures`, or without it `model_type`, names; None: not a decoder that runs here."""
    names = document.get("architectures")
    if isinstance(names, list) and names:
        return next((ARCHITECTURES[name] for name in names if isinstance(name, str) and name in ARCHITECTURES), None)
    return next((family for family in ARCHITECTURES.values() if family == document.get("model_type")), None)


def _read_llama(fields: Fields, family: Family) -> LlamaConfig:
    """Llama, Mistral and both Qwens: they differ in defaults, biases, norms of q and k, and windows."""
    activation = fields.text("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"{CONFIG_FILE}: hidden_act is {activation!r}; {family} models here use 'silu'")
    if fields.flag("use_mrope", False):
        raise ModelError(f"{CONFIG_FILE}: use_mrope is true; positions of images are not supported here")
    heads, width, layers = fields.integer("num_attention_heads"), fields.integer("hidden_size"), _layers(fields)
    shared = {"llama": heads, "mistral": 8, "qwen2": 32, "qwen3": 32}[family]
    if "num_key_value_heads" in fields.document:  # null: as many as heads
        shared = fields.integer("num_key_value_heads", heads)
    if family != "qwen3" and not fields.has("head_dim") and width % heads:
        raise ModelError(f"{CONFIG_FILE}: hidden_size {width} cannot be split over {heads} heads; head_dim is missing")
    theta, scaling = _read_rope(fields)
    window, first = _read_window(fields, family, layers)
    return LlamaConfig(
        vocabulary_size=fields.integer("vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        key_value_heads=shared,
        head_width=fields.integer("head_dim", 128 if family == "qwen3" else max(1, width // heads)),
        mlp_width=fields.integer("intermediate_size"),
        max_length=fields.integer("max_position_embeddings", {"llama": 2048, "mistral": 131072}.get(family, 32768)),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=fields.positive("rms_norm_eps", 1e-6),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        attention_bias=family == "qwen2" or (family != "mistral" and fields.flag("attention_bias", False)),
        mlp_bias=family == "llama" and fields.flag("mlp_bias", False),
        bos_token_id=fields.token_id("bos_token_id"),
        eos_token_ids=fields.token_ids("eos_token_id"),
        pad_token_id=fields.token_id("pad_token_id"),
        initializer_range=fields.number("initializer_range", 0.02),
        family=family,
        qk_norm=family == "qwen3",
        output_bias=False if family == "qwen2" else None,
        sliding_window=window,
        first_sliding_layer=first,
    )


def _write_llama(config: LlamaConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if (scaling := config.rope_scaling) is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_max_length,
            }
    document = {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "rms_norm_eps": config.norm_epsilon,
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "mlp_bias": config.mlp_bias,
    }
    if config.family == "mistral":
        document["sliding_window"] = config.sliding_window
    elif config.family in ("qwen2", "qwen3"):
        document |= {
            "sliding_window": config.sliding_window,
            "use_sliding_window": config.sliding_window is not None,
            "max_window_layers": config.first_sliding_layer,
        }
    return document


def _read_gpt2(fields: Fields) -> LlamaConfig:
    for name, only in {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }.items():
        if fields.flag(name, only) is not only:
            raise ModelError(f"{CONFIG_FILE}: {name} is {not only}; GPT-2 models here need {only}")
    wanted = fields.text("activation_function", "gelu_new")
    if wanted not in GPT2_ACTIVATIONS:
        raise ModelError(
            f"{CONFIG_FILE}: activation_function is {wanted!r}; known are {', '.join(sorted(GPT2_ACTIVATIONS))}"
        )
    width, heads = fields.integer("n_embd", 768), fields.integer("n_head", 12)
    if width % heads:
        raise ModelError(f"{CONFIG_FILE}: n_embd {width} cannot be split evenly over n_head {heads}")
    return LlamaConfig(
        vocabulary_size=fields.integer("vocab_size"),
        width=width,
        layers=fields.integer("n_layer", 12),
        heads=heads,
        key_value_heads=heads,
        head_width=width // heads,
        mlp_width=fields.integer("n_inner", 4 * width),
        max_length=fields.integer("n_positions", 1024),
        norm_epsilon=fields.positive("layer_norm_epsilon", 1e-5),
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        attention_bias=True,
        mlp_bias=True,
        bos_token_id=fields.token_id("bos_token_id"),
        eos_token_ids=fields.token_ids("eos_token_id"),
        pad_token_id=fields.token_id("pad_token_id"),
        initializer_range=fields.number("initializer_range", 0.02),
        family="gpt2",
        norm="LayerNorm",
        positions="Learned",
        activation=GPT2_ACTIVATIONS[wanted],
    )


def _write_gpt2(config: LlamaConfig) -> dict[str, Any]:
    return {
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.mlp_width,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": next(
            name for name, activation in GPT2_ACTIVATIONS.items() if activation == config.activation
        ),
    }


def _layers(fields: Fields) -> int:
    layers = fields.integer("num_hidden_layers")
    if layers > MOST_LAYERS:
        raise ModelError(f"{CONFIG_FILE}: num_hidden_layers is {layers}; there can be {MOST_LAYERS} at most")
    return layers


def _read_window(fields: Fields, family: Family, layers: int) -> tuple[int | None, int]:
    """The window, and the first layer that has it."""
    if family == "llama":
        return None, 0
    if family == "mistral":
        if "sliding_window" in fields.document and not fields.has("sliding_window"):
            return None, 0
        return fields.integer("sliding_window", 4096), 0
    if not fields.flag("use_sliding_window", False):
        return None, 0
    window = fields.integer("sliding_window", 4096)
    kinds = fields.document.get("layer_types")
    if kinds is None:
        first = fields.document.get("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise ModelError(f"{CONFIG_FILE}: max_window_layers has to be an integer of 0 or more, not {first!r}")
        first = min(first, layers)
    else:
        first = kinds.index("sliding_attention") if isinstance(kinds, list) and "sliding_attention" in kinds else layers
        if kinds != ["full_attention"] * first + ["sliding_attention"] * (layers - first):
            raise ModelError(
                f"{CONFIG_FILE}: layer_types mixes kinds of attention; supported is full_attention in the first layers "
                "and sliding_attention in the rest"
            )
    return (window, first) if first < layers else (None, 0)


def _read_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """The rotary base and its scaling: transformers 5 keeps both in rope_parameters, 4 apart."""
    parameters = Fields(CONFIG_FILE, {**fields.mapping("rope_scaling"), **fields.mapping("rope_parameters")})
    theta = parameters.positive("rope_theta", fields.positive("rope_theta", 10000.0))
    for source in (parameters, fields):
        if source.number("partial_rotary_factor", 1.0) != 1.0:
            raise ModelError(f"{CONFIG_FILE}: partial_rotary_factor is not 1; heads turn as a whole here")
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise ModelError(
            f"{CONFIG_FILE}: rotary scaling {kind!r} is not known here; known are default, linear and llama3"
        )
    names = ["factor"]
    if kind == "llama3":
        names += ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
    for name in names:
        if not parameters.has(name):
            raise ModelError(f"{CONFIG_FILE}: rotary scaling {kind!r} needs {name!r}, which is not there")
    factor = parameters.positive("factor")
    if kind == "linear":
        return theta, RopeScaling("linear", factor)
    low, high = parameters.positive("low_freq_factor"), parameters.positive("high_freq_factor")
    if low >= high:
        raise ModelError(f"{CONFIG_FILE}: low_freq_factor is {low}; it has to be below high_freq_factor, {high}")
    return theta, RopeScaling("llama3", factor, low, high, parameters.integer("original_max_position_embeddings"))


def _token_ids_to_json(ids: tuple[int, ...]) -> int | list[int] | None:
    if not ids:
        return None
    return ids[0] if len(ids) == 1 else list(ids)

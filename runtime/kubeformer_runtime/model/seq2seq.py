"""The Transformer of 2017: an encoder reads the source, a decoder writes the target and looks at what was read.

    model = Seq2Seq(config)
    logit_BTV = model(source_BS, source_length_B, target_BT)      # training: all positions of the target at once
    texts = model.generate(source_BS, source_length_B, max_length=64, beams=4)     # lists of token ids

"Attention Is All You Need", https://arxiv.org/abs/1706.03762, in Marian's layout (or Pegasus's, whose norm stands
before each branch; see seq2seq_config.py). Names of weights are Hugging Face's, so a directory needs no translation.
Shapes, beside those of layers.py:
    S tokens of a source    T tokens of a target    L tokens that are looked at: of the source, or of the target so far
    N = B · beams hypotheses
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kubeformer_runtime.model.layers import PLAIN_ACTIVATIONS
from kubeformer_runtime.model.search import beam_search, greedy_search
from kubeformer_runtime.model.seq2seq_config import Seq2SeqConfig

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {**PLAIN_ACTIVATIONS, "SiLU": F.silu}


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """One vector a position, float32, (length, D): sines in the first half, cosines of the same angles in the second.

    Angles are position / 10000^(2i / D). The paper has sines and cosines in turn, which is the same up to the order
    of channels. A shift by k positions is a rotation of every pair, so "k tokens back" is something attention can see.
    """
    frequency_P = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle_TP = torch.arange(length, dtype=torch.float64)[:, None] * frequency_P
    return torch.cat((angle_TP.sin(), angle_TP.cos()), dim=-1).float()


@dataclass(slots=True)
class KeysValues:
    """What one attention of one layer looks at: keys and values of every token, (N, H, L, W)."""

    key: Tensor
    value: Tensor

    def append(self, key_NH1W: Tensor, value_NH1W: Tensor) -> None:
        """Adds one token to each hypothesis."""
        self.key = torch.cat((self.key, key_NH1W), dim=2)
        self.value = torch.cat((self.value, value_NH1W), dim=2)

    def select(self, row_N: Tensor) -> None:
        """Goes on with these hypotheses, in this order."""
        self.key, self.value = self.key[row_N], self.value[row_N]


@dataclass(slots=True)
class Cache:
    """All that the decoder keeps between two tokens, so that each costs one pass over one token.

    `written` grows by a token a step; `read` are keys and values of the source, computed once.
    """

    written: list[KeysValues]
    read: list[KeysValues]
    source_mask_N11S: Tensor  # True: look

    @property
    def length(self) -> int:
        """Tokens written so far."""
        return self.written[0].key.shape[2]

    def select(self, row_N: Tensor) -> None:
        """Goes on with these hypotheses, in this order; a row may come more than once or not at all."""
        for pair in (*self.written, *self.read):
            pair.select(row_N)
        self.source_mask_N11S = self.source_mask_N11S[row_N]


class MultiHeadAttention(nn.Module):
    """softmax(Q Kᵀ / √d_k) V in H heads of width W = d_k each, side by side.

    Q comes from the tokens that look; K and V from those that are looked at: the same ones (self-attention), or the
    source (cross-attention).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def keys_values(self, y_BLD: Tensor) -> KeysValues:
        """Keys and values of tokens that are looked at."""
        return KeysValues(self._in_heads(self.k_proj(y_BLD)), self._in_heads(self.v_proj(y_BLD)))

    def forward(self, x_BTD: Tensor, seen: KeysValues, mask: Tensor | None, causal: bool = False) -> Tensor:
        """Every token of x looks at all of `seen` that `mask` (True: look; broadcast to (B, H, T, L)) allows.

        `causal` instead of a mask: at those up to itself. Returns (B, T, D).
        """
        q_BHTW = self._in_heads(self.q_proj(x_BTD))
        y_BHTW = F.scaled_dot_product_attention(q_BHTW, seen.key, seen.value, mask, is_causal=causal)
        y_BTD: Tensor = self.out_proj(y_BHTW.transpose(1, 2).flatten(2))
        return y_BTD

    def _in_heads(self, x_BTD: Tensor) -> Tensor:
        b, t, _ = x_BTD.shape
        return x_BTD.view(b, t, self.heads, -1).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Self-attention over the source, then the MLP W2 · ReLU(W1 · x + b1) + b2; each with norm, dropout, bypass."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(config.width, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.activation = ACTIVATIONS[config.activation]
        self.norm_first, self.dropout = config.norm_first, config.dropout

    def forward(self, x_BSD: Tensor, mask_B11S: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""

        def look(y_BSD: Tensor) -> Tensor:
            return cast(Tensor, self.self_attn(y_BSD, self.self_attn.keys_values(y_BSD), mask_B11S))

        x_BSD = self._branch(x_BSD, self.self_attn_layer_norm, look)
        return self._branch(x_BSD, self.final_layer_norm, self._think)

    def _think(self, x_BTD: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(self.activation(self.fc1(x_BTD))))

    def _branch(self, x_BTD: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """norm(x + branch(x)) as in 2017, or x + branch(norm(x)), which trains more easily when deep."""
        y_BTD = F.dropout(branch(norm(x_BTD) if self.norm_first else x_BTD), self.dropout, self.training)
        x_BTD = x_BTD + y_BTD
        return x_BTD if self.norm_first else cast(Tensor, norm(x_BTD))


class DecoderLayer(EncoderLayer):
    """As the encoder's, but a token looks only at those before it, and then at the source."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.encoder_attn = MultiHeadAttention(config.width, config.heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.width)

    def forward(  # type: ignore[override]
        self, x_BTD: Tensor, source: KeysValues, source_mask_B11S: Tensor, written: KeysValues | None = None
    ) -> Tensor:
        """(B, T, D) to (B, T, D). With `written`, T is 1: the token comes after those, and is added to them."""

        def look_back(y_BTD: Tensor) -> Tensor:
            new = self.self_attn.keys_values(y_BTD)
            if written is None:
                return cast(Tensor, self.self_attn(y_BTD, new, None, causal=True))
            written.append(new.key, new.value)
            return cast(Tensor, self.self_attn(y_BTD, written, None))

        def look_across(y_BTD: Tensor) -> Tensor:
            return cast(Tensor, self.encoder_attn(y_BTD, source, source_mask_B11S))

        x_BTD = self._branch(x_BTD, self.self_attn_layer_norm, look_back)
        x_BTD = self._branch(x_BTD, self.encoder_attn_layer_norm, look_across)
        return self._branch(x_BTD, self.final_layer_norm, self._think)


class Half(nn.Module):
    """The layers of encoder or decoder, and the norm that a half with norms before its branches ends with."""

    def __init__(self, config: Seq2SeqConfig, layers: list[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.layer_norm = nn.LayerNorm(config.width) if config.norm_first else nn.Identity()


class Seq2SeqBody(nn.Module):
    """Tokens to hidden states; called `model` in Hugging Face's names. `shared` embeds source and target alike."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocabulary_size, config.width)
        self.encoder = Half(config, [EncoderLayer(config) for _ in range(config.encoder_layers)])
        self.decoder = Half(config, [DecoderLayer(config) for _ in range(config.decoder_layers)])


class Seq2Seq(nn.Module):
    """The whole model. A source's answer does not depend on the padding beside it."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.model = Seq2SeqBody(config)
        self.register_buffer("final_logits_bias", torch.zeros(1, config.vocabulary_size))  # of Marian's; never trained
        table_TD = sinusoidal_positions(config.max_length, config.width)
        self.register_buffer("position_TD", table_TD, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Matrices as Glorot and Bengio have it; embeddings so that, scaled, they and the logits have variance 1."""
        deviation = self.config.width**-0.5 if self.config.scaled_embeddings else self.config.initializer_range
        for parameter in self.model.parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
        for name, parameter in self.model.named_parameters():
            if name.endswith(("proj.bias", "fc1.bias", "fc2.bias")):
                nn.init.zeros_(parameter)
        nn.init.normal_(self.model.shared.weight, 0.0, deviation)

    def forward(self, source_BS: Tensor, source_length_B: Tensor, target_BT: Tensor) -> Tensor:
        """Logits of the token that follows each of the target's, given the source: (B, T, V).

        Args:
            source_BS: token ids; what lies at or after a row's length is padding, any token will do.
            source_length_B: how many tokens of each source count; a row without any is treated as one padding token.
            target_BT: token ids, the first of them config.start_token_id: what is learned is
                target_BT[:, 1:] from target_BT[:, :-1]. Padding at the end needs no mask, since nothing looks ahead.
        """
        mask_B11S = self._mask(source_BS, source_length_B)
        memory_BSD = self._encode(source_BS, mask_B11S)
        x_BTD = self._embed(target_BT, 0)
        for layer in self._decoder_layers():
            x_BTD = layer(x_BTD, layer.encoder_attn.keys_values(memory_BSD), mask_B11S)
        return self._logits(x_BTD)

    def start(self, source_BS: Tensor, source_length_B: Tensor) -> Cache:
        """Reads the sources; `step` then writes token by token. Use under torch.inference_mode()."""
        mask_B11S = self._mask(source_BS, source_length_B)
        memory_BSD = self._encode(source_BS, mask_B11S)
        empty = memory_BSD.new_zeros(len(source_BS), self.config.heads, 0, self.config.head_width)
        return Cache(
            written=[KeysValues(empty, empty) for _ in self.model.decoder.layers],
            read=[layer.encoder_attn.keys_values(memory_BSD) for layer in self._decoder_layers()],
            source_mask_N11S=mask_B11S,
        )

    def step(self, token_N: Tensor, cache: Cache) -> Tensor:
        """Writes one token to each hypothesis: (N, V) logits of the next. The first token is config.start_token_id."""
        x_N1D = self._embed(token_N[:, None], cache.length)
        for layer, written, read in zip(self._decoder_layers(), cache.written, cache.read, strict=True):
            x_N1D = layer(x_N1D, read, cache.source_mask_N11S, written)
        return self._logits(x_N1D)[:, 0]

    @torch.inference_mode()
    def generate(
        self, source_BS: Tensor, source_length_B: Tensor, max_length: int, beams: int = 1, length_penalty: float = 1.0
    ) -> list[list[int]]:
        """Writes a target for each source.

        Args:
            source_BS, source_length_B: as in forward.
            max_length: tokens of an answer at most; also never more than the positions that the model has.
            beams: 1 takes the likeliest token at each step (greedy); more keeps that many hypotheses.
            length_penalty: a hypothesis's log-probability is divided by its length to this power (beams > 1).

        Returns:
            For each row the token ids of the answer, without the start token and without <eos>.
        """
        was_training = self.training
        self.eval()
        try:
            search = greedy_search if beams == 1 else beam_search
            most = min(max_length, self.config.max_length - 1)
            writer = Seq2SeqWriter(self, self.start(source_BS, source_length_B))
            return search(writer, len(source_BS), most, self.config.eos_token_id, beams, length_penalty)
        finally:
            self.train(was_training)

    def _mask(self, source_BS: Tensor, source_length_B: Tensor) -> Tensor:
        place_S = torch.arange(source_BS.shape[1], device=source_BS.device)
        return (place_S < source_length_B.clamp(min=1)[:, None])[:, None, None, :]

    def _encode(self, source_BS: Tensor, mask_B11S: Tensor) -> Tensor:
        x_BSD = self._embed(source_BS, 0)
        for layer in self.model.encoder.layers:
            x_BSD = layer(x_BSD, mask_B11S)
        return cast(Tensor, self.model.encoder.layer_norm(x_BSD))

    def _embed(self, token_BT: Tensor, first: int) -> Tensor:
        """Tokens and their positions, the first of which is `first`."""
        scale = math.sqrt(self.config.width) if self.config.scaled_embeddings else 1.0
        table_TD = self.get_buffer("position_TD")[first : first + token_BT.shape[1]]
        x_BTD = self.model.shared(token_BT) * scale
        return F.dropout(x_BTD + table_TD.to(x_BTD.dtype), self.config.dropout, self.training)

    def _logits(self, x_BTD: Tensor) -> Tensor:
        y_BTD = self.model.decoder.layer_norm(x_BTD)
        return F.linear(y_BTD, self.model.shared.weight) + self.get_buffer("final_logits_bias")

    def _decoder_layers(self) -> list[DecoderLayer]:
        return [cast(DecoderLayer, layer) for layer in self.model.decoder.layers]


@dataclass(slots=True)
class Seq2SeqWriter:
    """A model and its cache as a search sees them; see search.Writer."""

    model: Seq2Seq
    cache: Cache

    def first(self, rows: int) -> Tensor:
        """The tokens that targets begin with."""
        return torch.full((rows,), self.model.config.start_token_id, device=self.cache.source_mask_N11S.device)

    def step(self, token_N: Tensor) -> Tensor:
        """Log-probabilities of the next token, (N, V); minus infinity for those that are never generated."""
        log_probability_NV = torch.log_softmax(self.model.step(token_N, self.cache).float(), dim=-1)
        if self.model.config.suppressed:
            log_probability_NV[:, list(self.model.config.suppressed)] = float("-inf")
        return log_probability_NV

    def select(self, row_N: Tensor) -> None:
        """Goes on with these hypotheses."""
        self.cache.select(row_N)


def from_file(config: Seq2SeqConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names: one embedding where files may repeat it, no positions, and a bias even where none is."""
    kept = {name: tensor for name, tensor in weights.items() if name not in COPIES and "embed_positions" not in name}
    for name in COPIES:
        if name in weights:
            kept.setdefault("model.shared.weight", weights[name])
    kept.setdefault("final_logits_bias", torch.zeros(1, config.vocabulary_size))
    return kept


def to_file(config: Seq2SeqConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back; Pegasus wants the table of positions in the file, too."""
    if config.layout == "marian":
        return tensors
    table_TD = sinusoidal_positions(config.max_length, config.width)
    return tensors | {f"model.{half}.embed_positions.weight": table_TD.clone() for half in ("encoder", "decoder")}


# Other names of the one embedding, in files that write it more than once.
COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")

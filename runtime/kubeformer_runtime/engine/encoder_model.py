"""EncoderModel: an encoder's directory, warm: how texts become token ids, and token ids a vector.

Which vector is the directory's own choice: the logits of its classification head, or an embedding pooled as
sentence-transformers' modules.json and 1_Pooling/config.json say (without them: the mean over the tokens, normalised).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Encoding

from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.engine.linear import PackedLinear
from kubeformer_runtime.engine.pooling import PoolingInput
from kubeformer_runtime.engine.resources import choose_dtype
from kubeformer_runtime.engine.sampling_params import ParameterError
from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from kubeformer_runtime.model.encoder import Encoder, load_encoder_weights
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.reading import Fields, read_json
from kubeformer_runtime.model.weights import OnBytes

Mode = Literal["mean", "cls", "max", "mean_sqrt_len"]
Task = Literal["embed", "classify"]

MODULES_FILE = "modules.json"
SENTENCE_FILE = "sentence_bert_config.json"
MODES: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a text's vectors become one."""

    mode: Mode = "mean"
    normalize: bool = True


@dataclass(frozen=True, slots=True)
class EncoderModel:
    """An encoder, warm."""

    encoder: Encoder
    tokenizer: EngineTokenizer
    pooling: Pooling
    max_model_len: int
    dtype: torch.dtype
    digest: str | None
    deterministic: bool = False  # texts are computed one by one, so that others leave no trace even in the last bit

    @property
    def task(self) -> Task:
        """What the vectors are: embeddings, or logits of classes."""
        return "classify" if self.encoder.config.labels else "embed"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.encoder.config.labels

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        field: str,
        truncate: int | None = None,
        add_special_tokens: bool = True,
    ) -> PoolingInput:
        """Token ids as the model's tokenizer frames them.

        `truncate`: keep so many tokens, the frame included; -1: as many as the model takes; of a pair the longer
        text is cut.

        Raises:
            ParameterError: the text has no tokens or too many; `field` is the client's name for it.
        """
        tokenizer = self.tokenizer.tokenizer
        if truncate is not None and not (truncate == -1 or 1 <= truncate <= self.max_model_len):
            raise ParameterError(
                "truncate_prompt_tokens",
                f"truncate_prompt_tokens is {truncate}; give -1 or a number between 1 and {self.max_model_len}.",
            )
        first: Encoding = tokenizer.encode(text, add_special_tokens=False)
        second: Encoding | None = None if pair is None else tokenizer.encode(pair, add_special_tokens=False)
        frame = tokenizer.num_special_tokens_to_add(pair is not None) if add_special_tokens else 0
        if truncate is not None:
            room = max(0, (self.max_model_len if truncate == -1 else truncate) - frame)
            _cut(first, second, room)
        joined: Encoding = tokenizer.post_process(first, second, add_special_tokens)
        return self.checked(PoolingInput(joined.ids, joined.type_ids), field)

    def checked(self, item: PoolingInput, field: str) -> PoolingInput:
        """The input itself. Raises ParameterError where it cannot be computed."""
        length, size = len(item.tokens), self.encoder.config.vocabulary_size
        if not length:
            raise ParameterError(field, f"{field} has a text without tokens; give at least one.")
        if length > self.max_model_len:
            raise ParameterError(
                field,
                f"{field} has a text of {length} tokens, but this model takes at most {self.max_model_len}; shorten "
                "it or set truncate_prompt_tokens to -1.",
            )
        if (wrong := next((token for token in item.tokens if not 0 <= token < size), None)) is not None:
            raise ParameterError(field, f"{field} names token {wrong}; the vocabulary has 0 to {size - 1}.")
        return item

    @torch.inference_mode()
    def compute(self, items: Sequence[PoolingInput]) -> list[list[float]]:
        """One padded batch: pooled vectors, not yet normalised, or logits."""
        encoder, types = self.encoder, max(1, self.encoder.config.types)
        longest = max(len(item.tokens) for item in items)
        token_BT = torch.full((len(items), longest), encoder.config.pad_token_id)
        type_BT = torch.zeros_like(token_BT)
        for row, item in enumerate(items):
            token_BT[row, : len(item.tokens)] = torch.tensor(item.tokens)
            if item.types:
                type_BT[row, : len(item.types)] = torch.tensor(item.types).clamp(max=types - 1)
        length_B = torch.tensor([len(item.tokens) for item in items], device=encoder.device)
        x_BTD = encoder(token_BT.to(encoder.device), type_BT.to(encoder.device), length_B)
        if encoder.config.labels:
            vector_BD = encoder.classify(x_BTD)
        else:
            vector_BD = pool(x_BTD.float(), length_B, self.pooling.mode)
        answer: list[list[float]] = vector_BD.float().tolist()
        return answer


def pool(x_BTD: torch.Tensor, length_B: torch.Tensor, mode: Mode) -> torch.Tensor:
    """(B, D): sentence-transformers' ways to make one vector of many."""
    if mode == "cls":
        return x_BTD[:, 0]
    away_BT1 = (torch.arange(x_BTD.shape[1], device=x_BTD.device) >= length_B[:, None])[:, :, None]
    if mode == "max":
        return x_BTD.masked_fill(away_BT1, float("-inf")).amax(1)
    sum_BD = x_BTD.masked_fill(away_BT1, 0.0).sum(1)
    count_B1 = length_B[:, None].float()
    return sum_BD / (count_B1 if mode == "mean" else count_B1.sqrt())


def _cut(first: Encoding, second: Encoding | None, room: int) -> None:
    """Keep the first `room` tokens of both together; the longer text loses first."""
    if second is None:
        first.truncate(min(len(first.ids), room))
        return
    short, long = sorted((len(first.ids), len(second.ids)))
    if short + long <= room:
        return
    short = min(short, room // 2)
    long = room - short
    keep = (short, long) if len(first.ids) <= len(second.ids) else (long, short)
    first.truncate(keep[0])
    second.truncate(keep[1])


def refuse_what_writers_alone_do(settings: ServerSettings, kind: str) -> None:
    """Raises ModelError for the first setting that has no meaning for a model that writes no text."""
    for field, given, usual in (
        ("engine.quantization", settings.quantization, "None"),
        ("engine.speculativeTokens", settings.speculative_tokens, 0),
        ("adapters", settings.adapters, []),
    ):
        if given != usual:
            raise ModelError(f"{field} is for models that write text, and this one is {kind}; leave it out")


def load_encoder(
    settings: ServerSettings,
    directory: Path,
    *,
    device: torch.device,
    stored: torch.dtype,
    digest: str | None,
    on_bytes: OnBytes | None = None,
) -> EncoderModel:
    """Read, check and warm up. `stored`: the dtype of the weights on disk. Raises ModelError."""
    refuse_what_writers_alone_do(settings, "an encoder")
    tokenizer = EngineTokenizer.load(directory)
    dtype = choose_dtype(settings.dtype, stored, device)
    if device.type == "cpu" and dtype == torch.float16:
        raise ModelError("engine.dtype is Float16, which CPUs compute badly; use Auto, BFloat16 or Float32")
    encoder = load_encoder_weights(directory, dtype, device, on_bytes, PackedLinear)
    if tokenizer.vocabulary_size > encoder.config.vocabulary_size:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens, the model {encoder.config.vocabulary_size}: "
            "they do not belong together"
        )
    most = _sentence_length(directory, encoder.config.max_length)
    if settings.max_model_length is not None:
        if settings.max_model_length > encoder.config.max_length:
            raise ModelError(
                f"engine.maxModelLength is {settings.max_model_length}, but this model was made for "
                f"{encoder.config.max_length} tokens"
            )
        most = settings.max_model_length
    model = EncoderModel(
        encoder, tokenizer, read_pooling(directory), most, dtype, digest, settings.numerics == "Reproducible"
    )
    model.compute([PoolingInput((0,) * min(16, most)), PoolingInput((0,))])
    return model


def read_pooling(directory: Path) -> Pooling:
    """What modules.json and the pooling module's own file say. Raises ModelError for modules that we do not know."""
    path = directory / MODULES_FILE
    if not path.is_file():
        return Pooling()
    mode: Mode = "mean"
    normalize = False
    for module in _modules(path):
        kind, place = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if "/" in place or place.startswith(".") or (kind == "Transformer" and place):
            raise ModelError(f"{MODULES_FILE}: the path {place!r} is not known here; the model lies beside this file")
        if kind == "Normalize":
            normalize = True
        elif kind == "Pooling":
            mode = _mode(directory / place / "config.json")
        elif kind != "Transformer":
            raise ModelError(f"{MODULES_FILE}: modules of the type {kind!r} are not known; use a model without them")
    return Pooling(mode, normalize)


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{path} is no list of modules")
    return modules


def _mode(path: Path) -> Mode:
    """The one way to pool that a Pooling module's config.json asks for; a flag a way, or one name."""
    document = read_json(path)
    chosen = [mode for flag, mode in MODES.items() if document.get(flag)]
    if (name := document.get("pooling_mode")) is not None:
        chosen = [mode for mode in MODES.values() if mode == name]
    others = [flag for flag in document if flag.startswith("pooling_mode_") and flag not in MODES and document[flag]]
    if len(chosen) != 1 or others:
        raise ModelError(f"{path}: exactly one of {', '.join(MODES)} has to be true; other ways to pool are not known")
    return chosen[0]


def _sentence_length(directory: Path, most: int) -> int:
    """Tokens a text may have: the model's, or fewer where sentence-transformers' file says so."""
    path = directory / SENTENCE_FILE
    fields = Fields(SENTENCE_FILE, read_json(path) if path.is_file() else {})
    return min(most, fields.integer("max_seq_length", most))

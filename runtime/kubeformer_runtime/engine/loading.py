"""From a model directory to an engine that is warm: the one place where settings meet weights.

`load_engine(settings)` takes seconds and is meant for a thread of its own. Everything wrong with the model is a
ModelError, whose reason and message are for the owner of the deployment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from safetensors import SafetensorError, safe_open

from kubeformer.contract.base import Location
from kubeformer.contract.names import MODEL_CARD, Reason
from kubeformer.contract.server import Adapter, ServerSettings
from kubeformer_runtime.data.clean import Normalize, clean_text
from kubeformer_runtime.engine.classification import AnyClassifier, probabilities
from kubeformer_runtime.engine.core import EngineCore, Request
from kubeformer_runtime.engine.encoder_model import EncoderModel, load_encoder, refuse_what_writers_alone_do
from kubeformer_runtime.engine.resources import available_cpus, choose_dtype, choose_num_blocks, kv_cache_budget
from kubeformer_runtime.engine.runners import plan_runner
from kubeformer_runtime.engine.sampling_params import ParameterError, SamplingParams
from kubeformer_runtime.engine.scheduler import SchedulerConfig
from kubeformer_runtime.engine.seq2seq_model import Seq2SeqModel, load_seq2seq
from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from kubeformer_runtime.kernels.binding import BLOCK_SIZE
from kubeformer_runtime.model.config import GENERATION_FILE, LlamaConfig, Seq2SeqConfig, read_config, read_json
from kubeformer_runtime.model.digest import digest
from kubeformer_runtime.model.encoder_config import is_encoder
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.reading import Fields
from kubeformer_runtime.model.weights import LoadedModel, load, weight_files


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A generating model, warm."""

    core: EngineCore
    tokenizer: EngineTokenizer
    generation: dict[str, Any]  # generation_config.json
    vocab_size: int
    max_model_len: int
    dtype: torch.dtype
    digest: str | None


@dataclass(frozen=True, slots=True)
class ClassifierModel:
    """A classifier, warm."""

    model: AnyClassifier
    tokenizer: EngineTokenizer
    normalize: Normalize  # how texts were cleaned before training, and so have to be before answering
    max_model_len: int
    dtype: torch.dtype
    digest: str | None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids as in training: cleaned, cut, and framed by the tokenizer's <bos> and <eos>."""
        cleaned = [clean_text(text, self.normalize) for text in texts]
        return self.tokenizer.encode_framed(cleaned, self.max_model_len)


ServedModel = LanguageModel | ClassifierModel | EncoderModel | Seq2SeqModel


class Progress(Protocol):
    """Who wants to know how loading goes; called in the loading thread."""

    def stage(self, name: str, total: int = 0) -> None:
        """A new stage begins; `total`: bytes it goes through, 0 where that is not known."""
        ...

    def advance(self, size: int) -> None:
        """So many bytes more."""
        ...


def load_engine(
    settings: ServerSettings, *, threads: int | None = None, progress: Progress | None = None
) -> ServedModel:
    """Check, read and warm up. `threads`: None for as many as the container has cores."""
    directory = Path(settings.model.path)
    if not directory.is_dir():
        raise ModelError(
            f"there is no model at {settings.model.uri} (directory {directory}); check the URI and that the model "
            "was published there",
            Reason.MODEL_NOT_FOUND,
        )
    found = _verify(directory, settings.model)
    threads = threads or available_cpus()
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stored = stored_dtype(directory)
    if progress is not None:
        progress.stage("reading weights", sum(path.stat().st_size for path in weight_files(directory)))
    on_bytes = None if progress is None else progress.advance
    if is_encoder(directory):
        return load_encoder(settings, directory, device=device, stored=stored, digest=found, on_bytes=on_bytes)
    config = read_config(directory)
    tokenizer = EngineTokenizer.load(directory)
    dtype = choose_dtype(settings.dtype, stored, device)
    if device.type == "cpu" and dtype == torch.float16:
        raise ModelError("engine.dtype is Float16, which CPUs compute badly; use Auto, BFloat16 or Float32")
    if tokenizer.largest_token_id >= config.vocabulary_size:
        raise ModelError(
            f"the tokenizer has tokens up to id {tokenizer.largest_token_id}, the model {config.vocabulary_size} "
            "tokens in all: they do not belong together"
        )
    loaded = load(directory, dtype, device, on_bytes)
    if isinstance(config, LlamaConfig):
        return _language_model(settings, loaded, config, tokenizer, found, threads, progress)
    if isinstance(config, Seq2SeqConfig):
        return load_seq2seq(settings, loaded, tokenizer, _normalize(directory), found)
    return _classifier(settings, loaded, tokenizer, found)


def stored_dtype(directory: Path) -> torch.dtype:
    """The dtype that most of a model's weights are stored in."""
    path = weight_files(directory)[0]
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            sizes: dict[torch.dtype, int] = {}
            for name in names:
                part = file.get_slice(name)
                kind = _DTYPES.get(part.get_dtype(), torch.float32)
                sizes[kind] = sizes.get(kind, 0) + 1
    except FileNotFoundError:
        raise ModelError(f"{path.name} is not there", Reason.MODEL_NOT_FOUND) from None
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else torch.float32


_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def _verify(directory: Path, location: Location) -> str | None:
    """The directory's digest where one is expected; ModelError where it is another."""
    wanted = location.digest
    if wanted is None:
        return None
    found = digest(directory)
    if found != wanted:
        raise ModelError(
            f"{location.uri} has digest {found}, but {wanted} was asked for: the files have changed since; "
            "publish it again or correct the digest"
        )
    return found


def _language_model(
    settings: ServerSettings,
    loaded: LoadedModel,
    config: LlamaConfig,
    tokenizer: EngineTokenizer,
    found: str | None,
    threads: int,
    progress: Progress | None,
) -> LanguageModel:
    weights = loaded.weights
    device, dtype = next(iter(weights.values())).device, next(iter(weights.values())).dtype
    most = settings.max_model_length or config.max_length
    if most > config.max_length:
        raise ModelError(f"engine.maxModelLength is {most}, but this model was made for {config.max_length} tokens")
    weight_bytes = sum(tensor.nbytes for tensor in weights.values())
    plan = plan_runner(config, dtype, device, settings, threads)
    num_blocks = choose_num_blocks(
        plan.block_bytes,
        max_model_len=most,
        max_num_seqs=settings.max_num_seqs,
        megabytes=settings.kv_cache_megabytes,
        budget=kv_cache_budget(weight_bytes, device),
        block_size=BLOCK_SIZE,
    )
    if progress is not None:
        progress.stage("laying weights out")
    runner = plan.build(
        weights,
        num_blocks=num_blocks,
        max_length=most,
        reload=lambda: load(loaded.directory, dtype, device).weights,
    )
    generation = _generation(loaded.directory, config.vocabulary_size)
    ends = {token for token in config.eos_token_ids if token < config.vocabulary_size}  # others never come
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    limits = settings.max_num_seqs, settings.max_num_batched_tokens, most
    # A CPU computes 2,048 tokens as quickly in eight steps as in one; other devices want as many as they can get.
    scheduler = SchedulerConfig(*limits) if device.type == "cpu" else SchedulerConfig(*limits, limits[1], limits[1])
    core = EngineCore(runner, scheduler, tokenizer, frozenset(ends), speculative_tokens=settings.speculative_tokens)
    for adapter in settings.adapters:
        _add_adapter(core, adapter, settings.served_names)
    if progress is not None:
        progress.stage("warming up")
    _warm_up(core, min(64, most - 2))
    return LanguageModel(core, tokenizer, generation, config.vocabulary_size, most, dtype, found)


def _generation(directory: Path, vocab_size: int) -> dict[str, Any]:
    """generation_config.json, whose sampling has to be one that a request could ask for."""
    if not (directory / GENERATION_FILE).is_file():
        return {}
    document = read_json(directory / GENERATION_FILE)
    fields, given = Fields(GENERATION_FILE, document), dict[str, Any]()
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        if fields.has(name):
            given[name] = fields.number(name)
    for name, ours in (("top_k", "top_k"), ("max_new_tokens", "max_tokens")):
        if fields.has(name) and document[name] not in (0, -1):
            given[ours] = fields.integer(name)
    try:
        SamplingParams(**given).validate(vocab_size)
    except ParameterError as error:
        raise ModelError(f"{GENERATION_FILE}: {error}") from None
    return document


def _add_adapter(core: EngineCore, adapter: Adapter, served_names: Sequence[str]) -> None:
    """Check and load one of the settings' adapters. Raises ModelError, naming it."""
    location = adapter.location
    try:
        if adapter.name in served_names:
            raise ModelError("this is the name of the model itself; choose another")
        _verify(Path(location.path), location)
        core.add_adapter(adapter.name, location.path)
    except ModelError as error:
        raise ModelError(f"adapter {adapter.name} ({location.uri}): {error}", error.reason) from None


def _warm_up(core: EngineCore, length: int) -> None:
    """Run one short request, so that the first real one does not pay for the first use of every kernel."""
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    core.add(Request("warm-up", [0] * max(1, length), params, 0))
    while core.has_work:
        core.step()
    core.forget_prefixes()


def _classifier(
    settings: ServerSettings, loaded: LoadedModel, tokenizer: EngineTokenizer, found: str | None
) -> ClassifierModel:
    refuse_what_writers_alone_do(settings, "a classifier")
    model = loaded.module()
    if not isinstance(model, AnyClassifier):
        raise TypeError("a classifier was expected")
    parameter = next(model.parameters())
    most = model.config.max_length
    if settings.max_model_length is not None and settings.max_model_length > most:
        raise ModelError(
            f"engine.maxModelLength is {settings.max_model_length}, but this model was made for {most} tokens"
        )
    probabilities(model, [[0] * most, [0]], parameter.device)
    return ClassifierModel(
        model=model,
        tokenizer=tokenizer,
        normalize=_normalize(loaded.directory),
        max_model_len=settings.max_model_length or most,
        dtype=parameter.dtype,
        digest=found,
    )


def _normalize(directory: Path) -> Normalize:
    """How training cleaned its texts, as kubeformer.json tells; models from elsewhere get texts as they are."""
    if not (directory / MODEL_CARD).is_file():
        return "None"
    value: Any = read_json(directory / MODEL_CARD)
    for name in ("settings", "data", "prepare", "normalize"):
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        return "None"
    if value not in get_args(Normalize):
        raise ModelError(f"{MODEL_CARD}: normalize is {value!r}; known are {', '.join(get_args(Normalize))}")
    known: Normalize = value
    return known

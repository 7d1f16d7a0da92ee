"""Serving: what the handlers share: the model once it is there, the metrics, and whether new requests are taken."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import jinja2

from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.engine.async_engine import AsyncEngine
from kubeformer_runtime.engine.classification import ClassificationEngine
from kubeformer_runtime.engine.encoder_model import EncoderModel
from kubeformer_runtime.engine.loading import ClassifierModel, LanguageModel, ServedModel
from kubeformer_runtime.engine.pooling import PoolingEngine
from kubeformer_runtime.engine.seq2seq import Seq2SeqEngine
from kubeformer_runtime.engine.seq2seq_model import Seq2SeqModel
from kubeformer_runtime.engine.structured import StructureCompiler
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.server.chat import ChatTemplate
from kubeformer_runtime.server.errors import ApiError, bad_request
from kubeformer_runtime.server.metrics import Metrics

MAX_REQUESTS = 1024  # at once; more are refused, so that memory stays bounded and clients try elsewhere
Task = Literal["embed", "classify", "score"]


class Phase(Enum):
    """The life of a server."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True)
class Generator:
    """A language model that runs."""

    model: LanguageModel
    engine: AsyncEngine
    template: ChatTemplate | None
    structures: StructureCompiler


@dataclass(slots=True)
class Labeller:
    """A classifier that runs."""

    model: ClassifierModel
    engine: ClassificationEngine


@dataclass(slots=True)
class Pooler:
    """An encoder that runs."""

    model: EncoderModel
    engine: PoolingEngine


@dataclass(slots=True)
class Seq2SeqPart:
    """An encoder-decoder that runs."""

    model: Seq2SeqModel
    engine: Seq2SeqEngine


@dataclass(slots=True)
class Serving:
    """One server's state; lives in the event loop."""

    settings: ServerSettings
    max_requests: int = MAX_REQUESTS
    phase: Phase = Phase.LOADING
    refusing: bool = False  # draining, and the short while is over in which late requests are still taken
    active: int = 0  # requests between their first and their last byte
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # set while `active` is 0
    generator: Generator | None = None
    labeller: Labeller | None = None
    pooler: Pooler | None = None
    seq2seq: Seq2SeqPart | None = None
    adapters: dict[str, str] = field(default_factory=dict)  # LoRA adapters that are loaded: name to directory
    metrics: Metrics = field(init=False)
    started: int = field(init=False)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.name, self.settings.max_model_length or 8192)
        self.idle.set()
        self.started = int(self.wall_clock())

    @property
    def name(self) -> str:
        """What answers call the model."""
        return self.settings.served_names[0]

    @property
    def asleep(self) -> bool:
        """Whether weights and cache are given back; only /wake_up helps."""
        return self.generator is not None and self.generator.engine.core.asleep

    @property
    def part(self) -> Generator | Labeller | Pooler | Seq2SeqPart | None:
        """What runs; None while loading."""
        return self.generator or self.labeller or self.pooler or self.seq2seq

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request from its first to its last byte; ApiError where it cannot be taken now."""
        self.check_available()
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.active += change
        if self.active:
            self.idle.clear()
        else:
            self.idle.set()
        if self.generator is None:  # the engine that generates counts by itself
            self.metrics.running.set(self.active)

    @property
    def alive(self) -> bool:
        """False once the engine broke."""
        return self.part is None or self.part.engine.alive

    def install(self, model: ServedModel) -> None:
        """Put a loaded model to work; call it inside the event loop. Raises ModelError for a broken chat template."""
        self.metrics = Metrics(self.name, model.max_model_len)
        if isinstance(model, LanguageModel):
            template = None
            if (source := model.tokenizer.chat_template) is not None:
                try:
                    template = ChatTemplate(source, model.tokenizer.special_tokens)
                except jinja2.TemplateError as error:
                    raise ModelError(f"the chat template cannot be read: {error}") from None
            engine = AsyncEngine(model.core, lambda stats: self.metrics.step(stats))
            engine.start()
            structures = StructureCompiler(model.tokenizer, model.core.end_tokens, model.vocab_size)
            self.generator = Generator(model, engine, template, structures)
            self.adapters = {adapter.name: adapter.location.uri for adapter in self.settings.adapters}
            self.metrics.adapters_loaded(len(self.adapters))
            self.metrics.configured(model.core.cache_config)
        elif isinstance(model, EncoderModel):
            pooling = PoolingEngine(model.compute, max_rows=1 if model.deterministic else 64)
            pooling.start()
            self.pooler = Pooler(model, pooling)
        elif isinstance(model, Seq2SeqModel):
            writer = Seq2SeqEngine(model.model, max_rows=model.max_rows)
            writer.start()
            self.seq2seq = Seq2SeqPart(model, writer)
        else:
            classifier = ClassificationEngine(model.model, max_length=model.max_model_len)
            classifier.start()
            self.labeller = Labeller(model, classifier)
        self.phase = Phase.READY

    async def close(self) -> None:
        """Stop the engine."""
        if self.part is not None:
            await self.part.engine.close()
        if self.generator is not None:
            self.generator.structures.close()

    def check_available(self) -> None:
        """Raise ApiError where a request cannot be taken now."""
        if self.phase is Phase.LOADING:
            raise ApiError(503, "The model is still loading; try again in a few seconds.", headers={"Retry-After": "5"})
        if self.refusing:
            raise ApiError(503, "This server is shutting down; try again.", headers={"Retry-After": "1"})
        if not self.alive:
            raise ApiError(503, "The engine has stopped; this server is started again. Try again.")
        self.check_awake()
        if self.active >= self.max_requests:
            self.metrics.rejected()
            raise ApiError(
                503,
                f"{self.active} requests are on their way here, as many as this server takes; try again.",
                headers={"Retry-After": "1"},
            )

    def check_awake(self) -> None:
        """Raise ApiError while the server sleeps."""
        if self.asleep:
            raise ApiError(503, "This server sleeps; POST /wake_up, then try again.", headers={"Retry-After": "5"})

    def check_model(self, model: str | None) -> str:
        """The name that the answer carries; ApiError for one that is not served here."""
        if model is None:
            return self.name
        if model not in self.settings.served_names and model not in self.adapters:
            names = ", ".join(f"`{name}`" for name in (*self.settings.served_names, *self.adapters))
            raise ApiError(404, f"The model `{model}` does not exist here; served are {names}.", "model")
        return model

    def adapter(self, name: str) -> str | None:
        """The LoRA adapter that a checked model name stands for; None: the model itself."""
        return name if name in self.adapters else None

    def need_generator(self) -> Generator:
        """The language model, or 400 where this is something else."""
        if self.generator is None:
            raise self._wrong("writes no text" if self.seq2seq is None else "only turns one text into another")
        return self.generator

    def need_seq2seq(self) -> Seq2SeqPart:
        """The encoder-decoder, or 400 where this is something else."""
        if self.seq2seq is None:
            raise self._wrong("is no encoder-decoder")
        return self.seq2seq

    def need_labeller(self) -> Labeller:
        """Our own classifier, or 400 where this is something else."""
        if self.labeller is None:
            raise self._wrong("has no classes")
        return self.labeller

    def need_pooler(self, task: Task | None) -> Pooler:
        """The encoder, where it can do this (None: anything), or 400 that says what to send instead."""
        missing = {"embed": "gives no embeddings", "classify": "has no classes", "score": "gives no scores"}
        pooler = self.pooler
        if pooler is None:
            raise self._wrong("gives no vectors" if task is None else missing[task])
        scores = pooler.model.task == "embed" or len(pooler.model.labels) == 1
        if task is not None and not (scores if task == "score" else task == pooler.model.task):
            if task == "score":
                raise self._wrong(f"has {len(pooler.model.labels)} labels, not one that would be a score")
            raise self._wrong(missing[task])
        return pooler

    def _wrong(self, why: str) -> ApiError:
        if self.generator is not None:
            kind, path = "a language model", "/v1/chat/completions"
        elif self.seq2seq is not None:
            kind, path = "an encoder-decoder", "/v1/completions"
        elif self.labeller is not None or (self.pooler is not None and self.pooler.model.task == "classify"):
            kind, path = "a classifier", "/classify"
        else:
            kind, path = "an encoder", "/v1/embeddings"
        return bad_request(f"{self.name} is {kind} and {why}; send POST {path}.", "model")

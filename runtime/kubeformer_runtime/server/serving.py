"""Serving: what the handlers share: the model once it is there, the metrics, and whether new requests are taken."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

import jinja2

from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.engine.async_engine import AsyncEngine
from kubeformer_runtime.engine.classification import ClassificationEngine
from kubeformer_runtime.engine.loading import ClassifierModel, LanguageModel
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.server.chat import ChatTemplate
from kubeformer_runtime.server.errors import ApiError, bad_request
from kubeformer_runtime.server.metrics import Metrics


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


@dataclass(slots=True)
class Labeller:
    """A classifier that runs."""

    model: ClassifierModel
    engine: ClassificationEngine


@dataclass(slots=True)
class Serving:
    """One server's state; lives in the event loop."""

    settings: ServerSettings
    phase: Phase = Phase.LOADING
    refusing: bool = False  # draining, and the short while is over in which late requests are still taken
    active: int = 0  # requests between their first and their last byte
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # set while `active` is 0
    generator: Generator | None = None
    labeller: Labeller | None = None
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

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request from its first to its last byte; ApiError where it cannot be taken now."""
        self.check_available()
        self.active += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.active -= 1
            if not self.active:
                self.idle.set()

    @property
    def alive(self) -> bool:
        """False once the engine broke."""
        part = self.generator or self.labeller
        return part is None or part.engine.alive

    def install(self, model: LanguageModel | ClassifierModel) -> None:
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
            self.generator = Generator(model, engine, template)
        else:
            classifier = ClassificationEngine(model.model, max_length=model.max_model_len)
            classifier.start()
            self.labeller = Labeller(model, classifier)
        self.phase = Phase.READY

    async def close(self) -> None:
        """Stop the engine."""
        for part in (self.generator, self.labeller):
            if part is not None:
                await part.engine.close()

    def check_available(self) -> None:
        """Raise ApiError where a request cannot be taken now."""
        if self.phase is Phase.LOADING:
            raise ApiError(503, "The model is still loading; try again in a few seconds.", headers={"Retry-After": "5"})
        if self.refusing:
            raise ApiError(503, "This server is shutting down; try again.", headers={"Retry-After": "1"})
        if not self.alive:
            raise ApiError(503, "The engine has stopped; this server is started again. Try again.")

    def check_model(self, model: str | None) -> str:
        """The name that the answer carries; ApiError for one that is not served here."""
        if model is None:
            return self.name
        if model not in self.settings.served_names:
            names = ", ".join(f"`{name}`" for name in self.settings.served_names)
            raise ApiError(404, f"The model `{model}` does not exist here; served are {names}.", "model")
        return model

    def need_generator(self) -> Generator:
        """The language model, or 400 where this is a classifier."""
        if self.generator is None:
            raise bad_request(f"{self.name} is a classifier and writes no text; send POST /classify.", "model")
        return self.generator

    def need_labeller(self) -> Labeller:
        """The classifier, or 400 where this is a language model."""
        if self.labeller is None:
            raise bad_request(
                f"{self.name} is a language model and has no classes; send POST /v1/chat/completions.", "model"
            )
        return self.labeller

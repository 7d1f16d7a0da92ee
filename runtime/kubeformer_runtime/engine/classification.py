"""ClassificationEngine: our classifier, with requests batched as they come.

A thread takes every text that waits, sorts by length so that little is padded, and runs batches bounded by rows
and by padded tokens. A text's answer does not depend on what else is in its batch.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from kubeformer_runtime.engine.async_engine import EngineDeadError
from kubeformer_runtime.model.classifier import Classifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One text on its way."""

    tokens: Sequence[int]
    future: "asyncio.Future[list[float]]"


class ClassificationEngine:
    """Start it inside a running event loop; `close` ends the thread."""

    def __init__(
        self, model: Classifier, *, max_length: int | None = None, max_rows: int = 64, max_tokens: int = 8192
    ) -> None:
        """Texts are cut to `max_length` tokens, which is at most the model's own.

        A batch has at most `max_rows` texts and, unless it is one text, `max_tokens` tokens with padding.
        """
        self.model = model.eval()
        self.labels = model.config.labels
        self.max_length = min(max_length or model.config.max_length, model.config.max_length)
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._device = next(model.parameters()).device
        self._inbox: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="classifier", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._death: BaseException | None = None
        self._waiting = 0

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return self._death is None and self._thread.is_alive()

    @property
    def num_requests(self) -> int:
        """Texts that wait for their answer."""
        return self._waiting

    def start(self) -> None:
        """Begin to work."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Finish what waits and stop the thread."""
        if self._thread.is_alive():
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)

    async def classify(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Probabilities of every class for each text; longer texts are cut to the length the model was trained for.

        Raises:
            EngineDeadError: the engine broke, now or earlier.
        """
        if not self.alive or self._loop is None:
            raise EngineDeadError("the engine has stopped")
        jobs = [Job(tokens[: self.max_length], self._loop.create_future()) for tokens in texts]
        self._waiting += len(jobs)
        try:
            self._inbox.put(jobs)
            return await asyncio.gather(*(job.future for job in jobs))
        finally:
            self._waiting -= len(jobs)

    def _run(self) -> None:
        jobs: list[Job] = []
        try:
            while (taken := self._take()) is not None:
                jobs = sorted((job for job in taken if not job.future.cancelled()), key=lambda job: len(job.tokens))
                while jobs:
                    batch = jobs[: self._rows(jobs)]
                    self._answer(batch, probabilities(self.model, [job.tokens for job in batch], self._device))
                    jobs = jobs[len(batch) :]
        except BaseException as error:
            logger.exception("the engine broke; the process has to be started again")
            self._death = error
        else:
            self._death = EngineDeadError("the engine was closed")
        self._call(partial(_fail, [*jobs, *self._rest()]))

    def _take(self) -> list[Job] | None:
        """Everything that waits, at least one message; None: stop."""
        taken: list[Job] = []
        block = True
        with contextlib.suppress(queue.Empty):
            while len(taken) < self._max_rows * 4:
                message = self._inbox.get(block=block)
                if message is None:
                    if not taken:
                        return None
                    self._inbox.put(None)  # answer these first
                    break
                taken.extend(message)
                block = False
        return taken

    def _rest(self) -> list[Job]:
        rest: list[Job] = []
        with contextlib.suppress(queue.Empty):
            while True:
                rest.extend(self._inbox.get_nowait() or [])
        return rest

    def _rows(self, jobs: Sequence[Job]) -> int:
        """How many of the jobs, sorted by length, fit a batch; at least one."""
        rows = 1
        while rows < min(len(jobs), self._max_rows) and (rows + 1) * len(jobs[rows].tokens) <= self._max_tokens:
            rows += 1
        return rows

    def _answer(self, batch: Sequence[Job], answers: list[list[float]]) -> None:
        def deliver() -> None:
            for job, answer in zip(batch, answers, strict=True):
                if not job.future.done():
                    job.future.set_result(answer)

        self._call(deliver)

    def _call(self, action: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(action)


def _fail(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(EngineDeadError("the engine has stopped"))


@torch.inference_mode()
def probabilities(model: Classifier, texts: Sequence[Sequence[int]], device: torch.device) -> list[list[float]]:
    """One row of probabilities a text, from one padded batch."""
    longest = max(1, *(len(tokens) for tokens in texts))
    padding = model.config.pad_token_id
    token_BT = torch.tensor([[*tokens, *[padding] * (longest - len(tokens))] for tokens in texts], device=device)
    length_B = torch.tensor([len(tokens) for tokens in texts], device=device)
    logit_BC = model(token_BT, length_B)
    answer: list[list[float]] = torch.softmax(logit_BC.float(), dim=-1).tolist()
    return answer

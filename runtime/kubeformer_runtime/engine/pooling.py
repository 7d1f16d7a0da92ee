"""PoolingEngine: texts to vectors, with requests batched as they come.

    engine.start(); vectors = await engine.compute([PoolingInput((101, 7, 102))])

A thread takes every text that waits, sorts by length so that little is padded, and runs batches bounded by rows
and by padded tokens. A text's vector does not depend on what else is in its batch.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kubeformer_runtime.engine.async_engine import EngineDeadError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolingInput:
    """One text, or a pair of texts as the tokenizer joins them."""

    tokens: Sequence[int]
    types: Sequence[int] = ()  # segment of each token; empty: all 0


Vector = list[float]
Compute = Callable[[Sequence[PoolingInput]], list[Vector]]  # one padded batch


@dataclass(frozen=True, slots=True)
class Job:
    """One text on its way."""

    item: PoolingInput
    future: "asyncio.Future[Vector]"


class PoolingEngine:
    """Start it inside a running event loop; `close` ends the thread."""

    def __init__(self, compute: Compute, *, max_rows: int = 64, max_tokens: int = 8192) -> None:
        """A batch has at most `max_rows` texts and, unless it is one text, `max_tokens` tokens with padding."""
        self._compute = compute
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._inbox: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pooling", daemon=True)
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

    async def compute(self, items: Sequence[PoolingInput]) -> list[Vector]:
        """One vector for each text.

        Raises:
            EngineDeadError: the engine broke, now or earlier.
        """
        if not self.alive or self._loop is None:
            raise EngineDeadError("the engine has stopped")
        jobs = [Job(item, self._loop.create_future()) for item in items]
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
                jobs = sorted(
                    (job for job in taken if not job.future.cancelled()), key=lambda job: len(job.item.tokens)
                )
                while jobs:
                    batch = jobs[: self._rows(jobs)]
                    self._answer(batch, self._compute([job.item for job in batch]))
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
        most = min(len(jobs), self._max_rows)
        while rows < most and (rows + 1) * len(jobs[rows].item.tokens) <= self._max_tokens:
            rows += 1
        return rows

    def _answer(self, batch: Sequence[Job], answers: list[Vector]) -> None:
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

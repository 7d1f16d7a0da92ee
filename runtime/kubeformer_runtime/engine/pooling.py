"""PoolingEngine: texts to vectors, with requests batched as they come.

    engine.start(); vectors = await engine.compute([PoolingInput((101, 7, 102))])

A thread takes every text that waits, sorts by length so that little is padded, and runs batches bounded by rows
and by padded tokens. A text's vector does not depend on what else is in its batch.
"""

import asyncio
import contextlib
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kubeformer_runtime.engine.batch_thread import BatchThread


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


class PoolingEngine(BatchThread[Job]):
    """Start it inside a running event loop; `close` ends the thread."""

    def __init__(self, compute: Compute, *, max_rows: int = 64, max_tokens: int = 8192) -> None:
        """A batch has at most `max_rows` texts and, unless it is one text, `max_tokens` tokens with padding."""
        self._compute = compute
        self._max_rows, self._max_tokens = max_rows, max_tokens
        super().__init__("pooling")
        self._waiting = 0

    @property
    def num_requests(self) -> int:
        """Texts that wait for their answer."""
        return self._waiting

    async def compute(self, items: Sequence[PoolingInput]) -> list[Vector]:
        """One vector for each text.

        Raises:
            EngineDeadError: the engine broke, now or earlier.
        """
        loop = self._listener()
        jobs = [Job(item, loop.create_future()) for item in items]
        self._waiting += len(jobs)
        try:
            self._inbox.put(jobs)
            return await asyncio.gather(*(job.future for job in jobs))
        finally:
            self._waiting -= len(jobs)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            jobs = sorted((job for job in taken if not job.future.cancelled()), key=lambda job: len(job.item.tokens))
            while jobs:
                self._unanswered = jobs
                batch = jobs[: self._rows(jobs)]
                self._answer(batch, self._compute([job.item for job in batch]))
                jobs = jobs[len(batch) :]
            self._unanswered = []

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

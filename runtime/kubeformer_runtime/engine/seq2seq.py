"""Seq2SeqEngine: sources to targets by an encoder-decoder (model/seq2seq.py), with requests batched as they come.

    engine.start()
    async with aclosing(engine.write([Source((1, 7, 2), max_tokens=20)])) as answers:
        async for index, written in answers: ...

A thread takes what waits, reads sources that are written alike as one padded batch, and writes their targets together,
a token a step, with a cache. Who comes later waits for the next batch. A target that ends is answered at once and
leaves the batch; so does one that nobody waits for any more. What is written does not depend on who else is in the
batch (but for the last bits of sums; `max_rows=1` excludes these, too).
"""

import asyncio
import contextlib
import queue
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kubeformer_runtime.engine.batch_thread import BatchThread
from kubeformer_runtime.model.search import Writer, beam_search
from kubeformer_runtime.model.seq2seq import Seq2Seq, Seq2SeqWriter


@dataclass(frozen=True, slots=True)
class Source:
    """What is read, and how its target is to be written."""

    tokens: Sequence[int]  # framed; at least one, at most the model's max_length
    max_tokens: int  # of the target, <eos> among them; less than the model's max_length
    beams: int = 1  # 1: greedily
    length_penalty: float = 1.0  # of beams; see Seq2Seq.generate

    @property
    def way(self) -> tuple[float, ...]:
        """Sources with equal ones can be written in one batch: greedy ones all, beams as far as they are alike."""
        return (1,) if self.beams == 1 else (self.beams, self.length_penalty, self.max_tokens)


@dataclass(frozen=True, slots=True)
class Written:
    """A target."""

    tokens: list[int]  # without <eos>
    ended: bool  # by <eos>; else by max_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens that were written, <eos> among them."""
        return len(self.tokens) + self.ended


Finish = Callable[[int, Written], None]
Gone = Callable[[int], bool]


class _NobodyWaitsError(Exception):
    """Ends a beam search that nobody waits for."""


@dataclass(frozen=True, slots=True)
class _Watched:
    """A writer that looks before each step whether anybody still waits."""

    writer: Writer
    gone: Callable[[], bool]

    def first(self, rows: int) -> Tensor:
        return self.writer.first(rows)

    def step(self, token_N: Tensor) -> Tensor:
        if self.gone():
            raise _NobodyWaitsError
        return self.writer.step(token_N)

    def select(self, row_N: Tensor) -> None:
        self.writer.select(row_N)


@torch.inference_mode()
def write_batch(model: Seq2Seq, sources: Sequence[Source], finish: Finish, gone: Gone) -> None:
    """Write the targets of sources of one way (Source.way).

    `finish` hears of each target, by its source's place, as soon as it is there. Of sources that are `gone`, which is
    asked between steps, nothing more is written.
    """
    device = model.model.shared.weight.device
    length_B = torch.tensor([len(source.tokens) for source in sources], device=device)
    source_BS = torch.full((len(sources), max(len(source.tokens) for source in sources)), model.config.pad_token_id)
    for row, source in enumerate(sources):
        source_BS[row, : len(source.tokens)] = torch.tensor(source.tokens)
    writer = Seq2SeqWriter(model, model.start(source_BS.to(device), length_B))
    if sources[0].beams == 1:
        _greedily(writer, sources, model.config.eos_token_id, finish, gone)
        return
    watched = _Watched(writer, lambda: all(map(gone, range(len(sources)))))
    most, beams, penalty = sources[0].max_tokens, sources[0].beams, sources[0].length_penalty
    with contextlib.suppress(_NobodyWaitsError):
        targets = beam_search(watched, len(sources), most, model.config.eos_token_id, beams, penalty)
        for row, tokens in enumerate(targets):
            finish(row, Written(tokens, ended=len(tokens) < most))  # with <eos>, none has more than `most`


def _greedily(writer: Writer, sources: Sequence[Source], eos: int, finish: Finish, gone: Gone) -> None:
    """The likeliest token each time, as search.greedy_search; here each target has its own most tokens."""
    targets: list[list[int]] = [[] for _ in sources]
    going = list(range(len(sources)))  # whose target each row of the batch writes
    token_N = writer.first(len(sources))
    while going:
        token_N = writer.step(token_N).argmax(dim=-1)
        kept = list[int]()
        for row, (place, token) in enumerate(zip(going, token_N.tolist(), strict=True)):
            if token != eos:
                targets[place].append(token)
            if token == eos or len(targets[place]) == sources[place].max_tokens:
                finish(place, Written(targets[place], ended=token == eos))
            elif not gone(place):
                kept.append(row)
        if kept and len(kept) < len(going):
            row_N = torch.tensor(kept, device=token_N.device)
            token_N = token_N[row_N]
            writer.select(row_N)
        going = [going[row] for row in kept]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One source on its way."""

    source: Source
    future: "asyncio.Future[Written]"


class Seq2SeqEngine(BatchThread[Job]):
    """Start it inside a running event loop; `close` ends the thread."""

    def __init__(self, model: Seq2Seq, *, max_rows: int = 64, max_tokens: int = 8192) -> None:
        """A batch has at most `max_rows` hypotheses and `max_tokens` tokens of sources with padding, or one source."""
        self._model = model.eval()
        self._max_rows, self._max_tokens = max_rows, max_tokens
        super().__init__("seq2seq")
        self._closing = False  # of the thread: write what waits, then end

    async def write(self, sources: Sequence[Source]) -> AsyncGenerator[tuple[int, Written]]:
        """Targets with their sources' places, as they come. Closing the generator gives up what is not there yet.

        Raises:
            EngineDeadError: the engine broke, now or earlier.
        """
        loop = self._listener()
        jobs = [Job(source, loop.create_future()) for source in sources]
        places = {job.future: place for place, job in enumerate(jobs)}
        try:
            self._inbox.put(jobs)
            waiting = set(places)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for future in sorted(done, key=places.__getitem__):
                    yield places[future], future.result()
        finally:
            for future in places:
                future.cancel()

    def _work(self) -> None:
        waiting: list[Job] = []
        while True:
            waiting = self._unanswered = [job for job in self._take(waiting) if not job.future.cancelled()]
            if waiting:
                batch = self._batch(waiting)
                chosen = set(map(id, batch))
                waiting = [job for job in waiting if id(job) not in chosen]
                self._write(batch)
            elif self._closing:
                return

    def _take(self, waiting: list[Job]) -> list[Job]:
        """What waits, with everything that has come; waits for a message where there is nothing to do."""
        taken = list(waiting)
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._inbox.get(block=not taken and not self._closing)
                if message is None:
                    self._closing = True
                else:
                    taken.extend(message)
        return taken

    def _batch(self, waiting: Sequence[Job]) -> list[Job]:
        """The job that has waited longest, and those behind it that are written alike, as many as fit."""
        first = waiting[0].source
        batch, longest = list[Job](), 0
        for job in waiting:
            if job.source.way != first.way:
                continue
            longest = max(longest, len(job.source.tokens))
            rows = len(batch) + 1
            if batch and (rows * first.beams > self._max_rows or rows * longest > self._max_tokens):
                break
            batch.append(job)
        return batch

    def _write(self, batch: Sequence[Job]) -> None:
        def finish(place: int, written: Written) -> None:
            self._call(partial(_deliver, batch[place].future, written))

        write_batch(self._model, [job.source for job in batch], finish, lambda place: batch[place].future.cancelled())


def _deliver(future: "asyncio.Future[Written]", written: Written) -> None:
    if not future.done():
        future.set_result(written)

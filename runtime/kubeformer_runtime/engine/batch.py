"""Batch: one step of the scheduler as index lists and tensors, the only thing a model runner sees of sequences.

All tokens of a step stand in one flat row (no padding): first every sequence that computes one token (decode),
shortest context first, then every chunk of a prompt. What a runner asks for is made when it asks: the CPU's own
kernels walk the block tables of `spans`; PyTorch wants decodes of similar length in groups, whose block tables are
padded to the longest, so that attention is one call a group. Shapes:
    N tokens of the step    G rows of a decode group    M blocks of its longest row    S sampled rows
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kubeformer_runtime.engine.scheduler import Scheduled

MASKED = float("-inf")


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of the batch: neighbouring tokens of one sequence, after `context` computed ones."""

    start: int
    stop: int
    context: int
    table: list[int]  # the sequence's block table, at least up to the last of these tokens; not to be changed
    adapter: str | None = None  # the LoRA adapter's key


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows [start, stop) of the batch, one token each."""

    start: int
    stop: int
    blocks: Tensor  # (G · M,) int64: block tables, one after the other; padding repeats a row's first block
    mask: Tensor | None  # (G, 1, 1, M · block_size): 0 where a row has a token, -inf behind; None: no padding


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Rows [start, stop) of the batch: neighbouring tokens of one sequence, after `context` computed ones."""

    start: int
    stop: int
    context: int
    blocks: Tensor  # (M,) int64: block table up to the last of these tokens


@dataclass(frozen=True)
class Batch:
    """A whole step. Tensors are int64."""

    token_ids: list[int]  # N
    row_positions: list[int]  # N
    row_slots: list[int]  # N: where in the cache keys and values go; slot = block · block_size + offset
    wanted_rows: list[int]  # S: rows whose logits are wanted (`Scheduled.wanted`), in the order of scheduled
    spans: tuple[Span, ...]  # of all rows, in order
    block_size: int
    dtype: torch.dtype  # of the cache, which masks are added to
    device: torch.device | str

    @cached_property
    def tokens(self) -> Tensor:
        """(N,)"""
        return self._tensor(self.token_ids)

    @cached_property
    def positions(self) -> Tensor:
        """(N,)"""
        return self._tensor(self.row_positions)

    @cached_property
    def slots(self) -> Tensor:
        """(N,)"""
        return self._tensor(self.row_slots)

    @cached_property
    def sample_rows(self) -> Tensor:
        """(S,)"""
        return self._tensor(self.wanted_rows)

    @cached_property
    def adapter_rows(self) -> tuple[tuple[str, Tensor | None], ...]:
        """Each LoRA adapter's key and rows; None for all rows."""
        rows: dict[str, list[int]] = {}
        for span in self.spans:
            if span.adapter is not None:
                rows.setdefault(span.adapter, []).extend(range(span.start, span.stop))
        count = len(self.token_ids)
        return tuple((key, None if len(found) == count else self._tensor(found)) for key, found in rows.items())

    @cached_property
    def groups(self) -> tuple[DecodeGroup, ...]:
        """The decodes, cut where padding would more than double the shortest row of a group."""
        decodes = [span for span in self.spans if span.stop == span.start + 1]
        groups: list[DecodeGroup] = []
        start = 0
        needs = [span.context // self.block_size + 1 for span in decodes]
        while start < len(decodes):
            stop = start
            while stop < len(decodes) and needs[stop] <= 2 * needs[start] + 2:
                stop += 1
            groups.append(self._group(start, decodes[start:stop], needs[start:stop]))
            start = stop
        return tuple(groups)

    @cached_property
    def chunks(self) -> tuple[PrefillChunk, ...]:
        """Everything but the decodes."""
        return tuple(
            PrefillChunk(
                span.start,
                span.stop,
                span.context,
                self._tensor(span.table[: -(-(span.context + span.stop - span.start) // self.block_size)]),
            )
            for span in self.spans
            if span.stop > span.start + 1
        )

    def _group(self, start: int, spans: list[Span], needs: list[int]) -> DecodeGroup:
        longest = needs[-1]
        flat: list[int] = []
        for span, need in zip(spans, needs, strict=True):
            flat.extend(span.table[:need])
            flat.extend(span.table[:1] * (longest - need))
        lengths = self._tensor([span.context + 1 for span in spans])
        absent = torch.arange(longest * self.block_size, device=self.device) >= lengths[:, None]
        mask = None
        if bool(absent.any()):
            mask = torch.zeros(absent.shape, dtype=self.dtype, device=self.device).masked_fill_(absent, MASKED)
            mask = mask[:, None, None, :]
        return DecodeGroup(start, start + len(spans), self._tensor(flat), mask)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def build_batch(
    scheduled: SequenceOf[Scheduled], block_size: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Batch:
    """Lay out one step. `dtype` is that of the cache, which masks are added to."""
    decodes = [index for index, item in enumerate(scheduled) if item.num_new_tokens == 1]
    decodes.sort(key=lambda index: scheduled[index].start)
    prefills = [index for index, item in enumerate(scheduled) if item.num_new_tokens > 1]

    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    spans: list[Span] = []
    first_row: dict[int, int] = {}
    for index in (*decodes, *prefills):
        item = scheduled[index]
        stop, first = item.start + item.num_new_tokens, len(tokens)
        table = item.seq.block_table
        tokens.extend(item.seq.span(item.start, stop))
        positions.extend(range(item.start, stop))
        slots.extend(table[p // block_size] * block_size + p % block_size for p in range(item.start, stop))
        first_row[index] = first
        spans.append(Span(first, len(tokens), item.start, table, item.seq.adapter))
    wanted = [first_row[i] + position - item.start for i, item in enumerate(scheduled) for position in item.wanted]
    return Batch(tokens, positions, slots, wanted, tuple(spans), block_size, dtype, device)

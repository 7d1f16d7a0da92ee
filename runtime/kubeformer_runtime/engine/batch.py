"""Batch: one step of the scheduler as index tensors, the only thing a model runner sees of sequences.

All tokens of a step stand in one flat row (no padding): first every sequence that computes one token (decode),
shortest context first, then every chunk of a prompt. Decodes of similar length form groups, whose block tables
are padded to the longest, so that attention is one call a group. Shapes:
    N tokens of the step    G rows of a decode group    M blocks of its longest row    S sampled rows
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from kubeformer_runtime.engine.scheduler import Scheduled

MASKED = float("-inf")


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


@dataclass(frozen=True, slots=True)
class Batch:
    """A whole step."""

    tokens: Tensor  # (N,) int64
    positions: Tensor  # (N,) int64
    slots: Tensor  # (N,) int64: where in the cache keys and values go; slot = block · block_size + offset
    groups: tuple[DecodeGroup, ...]
    chunks: tuple[PrefillChunk, ...]
    sample_rows: Tensor  # (S,) int64: rows whose logits are wanted, in the order of what was scheduled


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
    last_row: dict[int, int] = {}
    chunks: list[PrefillChunk] = []
    for index in (*decodes, *prefills):
        item = scheduled[index]
        stop, first = item.start + item.num_new_tokens, len(tokens)
        table = item.seq.block_table
        tokens.extend(item.seq.tokens[item.start : stop])
        positions.extend(range(item.start, stop))
        slots.extend(table[p // block_size] * block_size + p % block_size for p in range(item.start, stop))
        last_row[index] = len(tokens) - 1
        if item.num_new_tokens > 1:
            blocks = torch.tensor(table[: -(-stop // block_size)], device=device)
            chunks.append(PrefillChunk(first, len(tokens), item.start, blocks))

    def index_tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Batch(
        tokens=index_tensor(tokens),
        positions=index_tensor(positions),
        slots=index_tensor(slots),
        groups=tuple(_groups([scheduled[index] for index in decodes], block_size, dtype, device)),
        chunks=tuple(chunks),
        sample_rows=index_tensor([last_row[i] for i, item in enumerate(scheduled) if item.samples]),
    )


def _groups(
    decodes: list[Scheduled], block_size: int, dtype: torch.dtype, device: torch.device | str
) -> list[DecodeGroup]:
    """Cut the decodes, sorted by length, where padding would more than double the shortest row of a group."""
    groups: list[DecodeGroup] = []
    start = 0
    needs = [item.start // block_size + 1 for item in decodes]
    while start < len(decodes):
        stop = start
        while stop < len(decodes) and needs[stop] <= 2 * needs[start] + 2:
            stop += 1
        longest = needs[stop - 1]
        flat: list[int] = []
        for item, need in zip(decodes[start:stop], needs[start:stop], strict=True):
            table = item.seq.block_table
            flat.extend(table[:need])
            flat.extend(table[:1] * (longest - need))
        lengths = torch.tensor([item.start + 1 for item in decodes[start:stop]], device=device)
        absent = torch.arange(longest * block_size, device=device) >= lengths[:, None]
        mask = None
        if bool(absent.any()):
            mask = torch.zeros(absent.shape, dtype=dtype, device=device).masked_fill_(absent, MASKED)[:, None, None, :]
        groups.append(DecodeGroup(start, stop, torch.tensor(flat, device=device), mask))
        start = stop
    return groups

"""Which rows are in which step: a pure function of seed, epoch and step, the same for any number of ranks.

Each epoch has its own permutation of all rows, cut into global batches of `batch_size` rows (the last may be
smaller). A rank takes its share of a global batch, so the rows of a step, and so the gradient, do not depend
on how many ranks there are, and training goes on at any step without replaying the ones before.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BUCKET_BATCHES = 32  # rows are sorted by length within this many batches: enough to save padding, still random


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of a global batch. All ranks get equally many rows; fillers have weight 0."""

    rows_B: NDArray[np.int64]
    weights_B: NDArray[np.float32]  # 1 for a row that counts, 0 for a filler
    batch_rows: int  # of the global batch: the sum of all ranks' weights


class BatchOrder:
    """The order of rows in training.

    `lengths` given: rows of similar length share a batch (less padding), batches stay in random order.
    Raises ValueError for no rows or a batch size below 1.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, lengths: NDArray[np.int64] | None = None) -> None:
        if rows < 1 or batch_size < 1:
            raise ValueError(f"{rows} rows cannot be put into batches of {batch_size}")
        self._rows, self._batch_size, self._seed, self._lengths = rows, batch_size, seed, lengths
        self._epoch = -1
        self._batches: list[NDArray[np.int64]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return -(-self._rows // self._batch_size)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Row numbers of global step `step` (from 0, counted over all epochs)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._epoch_batches(epoch), epoch
        return self._batches[within]

    def share(self, step: int, rank: int, world_size: int) -> Share:
        """What `rank` of `world_size` takes of global step `step`."""
        return _share(self.batch(step), rank, world_size)

    def _epoch_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        generator = np.random.Generator(np.random.PCG64([self._seed & 0xFFFFFFFFFFFFFFFF, epoch]))
        order = generator.permutation(self._rows).astype(np.int64)
        if self._lengths is None:
            return _cut(order, self._batch_size)
        batches: list[NDArray[np.int64]] = []
        for bucket in _cut(order, self._batch_size * _BUCKET_BATCHES):
            batches += _cut(bucket[np.argsort(self._lengths[bucket], kind="stable")], self._batch_size)
        return [batches[index] for index in generator.permutation(len(batches))]


def in_order(rows: int, batch_size: int, rank: int, world_size: int) -> list[Share]:
    """Shares that cover all rows once, in order: for evaluation. Every rank gets equally many shares."""
    return [_share(batch, rank, world_size) for batch in _cut(np.arange(rows, dtype=np.int64), batch_size)]


def _cut(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def _share(batch: NDArray[np.int64], rank: int, world_size: int) -> Share:
    # Strided, so that ranks get rows of the same lengths where a batch is sorted by length.
    rows_B = batch[rank::world_size]
    size = -(-len(batch) // world_size)
    weights_B = np.zeros(size, dtype=np.float32)
    weights_B[: len(rows_B)] = 1.0
    fillers = np.full(size - len(rows_B), batch[0], dtype=np.int64)
    return Share(np.concatenate([rows_B, fillers]), weights_B, len(batch))

"""Which rows are in which step: a pure function of seed, epoch and step, the same for any number of ranks.

Each epoch has its own permutation of all rows, cut into global batches of `batch_size` rows (the last may be
smaller). A rank takes its share of a global batch, so the rows of a step, and so the gradient, do not depend
on how many ranks there are, and training goes on at any step without replaying the ones before.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of a global batch. All ranks get equally many rows; fillers have weight 0."""

    rows_B: NDArray[np.int64]
    weights_B: NDArray[np.float32]  # 1 for a row that counts, 0 for a filler
    batch_rows: int  # of the global batch: the sum of all ranks' weights


class BatchOrder:
    """The order of rows in training.

    `lengths` given: rows of similar length share a batch (less padding), batches stay in random order.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, lengths: NDArray[np.int64] | None = None) -> None:
        raise NotImplementedError

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        raise NotImplementedError

    def batch(self, step: int) -> NDArray[np.int64]:
        """Row numbers of global step `step` (from 0, counted over all epochs)."""
        raise NotImplementedError

    def share(self, step: int, rank: int, world_size: int) -> Share:
        """What `rank` of `world_size` takes of global step `step`."""
        raise NotImplementedError


def in_order(rows: int, batch_size: int, rank: int, world_size: int) -> list[Share]:
    """Shares that cover all rows once, in order: for evaluation. Every rank gets equally many shares."""
    raise NotImplementedError

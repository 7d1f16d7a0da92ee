"""The parts of every task: sums, the interface that the loop knows, what tasks have in common."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from kubeformer.contract.job import Training
from kubeformer_runtime.data.order import BatchOrder, Share, in_order
from kubeformer_runtime.data.prepared import Split
from kubeformer_runtime.model.weights import Module

Network: TypeAlias = Module


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over what counts in a batch: rows of a classification, predicted tokens of a language model."""

    loss: Tensor  # scalar, with its graph
    correct: Tensor  # scalar
    weight: float  # how many counted
    more: tuple[Tensor, ...] = ()  # further sums for `extra`, equally many in every batch; evaluation alone reads them


@dataclass(frozen=True, slots=True)
class Totals:
    """Tallies of a whole split, over all ranks."""

    loss: float
    correct: float
    weight: float
    more: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranks:
    """All ranks in an evaluation, as a task sees them."""

    rank: int
    size: int
    sum: Callable[[Sequence[float]], list[float]]  # over all ranks, the same on each
    tick: Callable[[], None]  # call every few seconds, equally often on every rank; raises Stopped where asked to


class Task(Protocol):
    """One kind of learning over one prepared data set."""

    order: BatchOrder

    @property
    def train(self) -> Split:
        """The split that is trained on."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names that `measures` gives."""
        ...

    @property
    def extra_metrics(self) -> tuple[str, ...]:
        """Names that `extra` gives: measured in evaluations only."""
        ...

    @property
    def row_tokens(self) -> int:
        """Tokens of the longest row that goes through the network."""
        ...

    def weight(self, step: int) -> float:
        """What counts in the global batch of `step`, over all ranks."""
        ...

    def tokens(self, step: int) -> int:
        """Tokens of the global batch that the model reads, padding left out."""
        ...

    def batch(self, split: Any, share: Share) -> Any:
        """The arrays of one rank's share of a split."""
        ...

    def tally(self, network: Any, batch: Any) -> Tally:
        """Runs the network forward over what `batch` gave."""
        ...

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """Metrics from sums over all ranks."""
        ...

    def extra(self, network: Any, split: Any, totals: Totals, ranks: Ranks) -> dict[str, float]:
        """Metrics of a whole split beyond `measures`. The network is in evaluation mode, without gradients."""
        ...


class BaseTask:
    """What a task has where it does not say otherwise: rows in random batches, no extra metrics."""

    extra_metrics: tuple[str, ...] = ()

    def __init__(self, train: Split, training: Training) -> None:
        self.train = train
        self.order = BatchOrder(len(train), training.batch_size, training.seed)

    def weight(self, step: int) -> float:
        """Rows of the global batch."""
        return float(len(self.order.batch(step)))

    def extra(self, network: Any, split: Any, totals: Totals, ranks: Ranks) -> dict[str, float]:
        """None."""
        return {}


def passes(share: Share, rows: int) -> Iterator[Share]:
    """Cuts a share into pieces of at most `rows` rows: gradient accumulation, where a share is too large at once."""
    for start in range(0, len(share.rows_B), rows):
        piece = slice(start, start + rows)
        yield Share(share.rows_B[piece], share.weights_B[piece], share.batch_rows)


def evaluation_shares(split: Split, rows: int, rank: int, size: int) -> list[Share]:
    """Shares of `rows` rows a rank that cover a split once; every rank gets equally many."""
    return in_order(len(split), rows * size, rank, size)

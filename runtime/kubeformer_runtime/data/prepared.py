"""What preparation hands to the trainer: arrays, facts to read them with, the tokenizer, a report.

Legend: R rows, B rows of one batch, T tokens of the longest row of a batch, S sequence length, X all tokens
of a split. Arrays may be read-only memory maps of the cache under the checkpoint directory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kubeformer_runtime.data.tokenizer import TextTokenizer

Int32: TypeAlias = NDArray[np.int32]
Int64: TypeAlias = NDArray[np.int64]
Float32: TypeAlias = NDArray[np.float32]
Bool: TypeAlias = NDArray[np.bool_]

IGNORE = -100  # a target that counts for nothing, as in torch.nn.functional.cross_entropy

# Preparation calls this at least every few seconds, from the loop that does the work, so that a hang shows.
Beat: TypeAlias = Callable[[], None]


class Split(Protocol):
    """Rows as arrays: a frozen dataclass whose fields are all numpy arrays. Each recipe has its own."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __len__(self) -> int:
        """Rows that batches are made of."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens (or items) of all rows, padding left out."""
        ...


@dataclass(frozen=True, slots=True)
class SplitReport:
    """One split, counted after cleaning."""

    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One of several sources: its training rows, and how many rows it gives to an epoch by its weight."""

    name: str
    weight: float
    rows: int
    epoch_rows: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """What happened to the rows between the files and the batches.

    rows_read = rows_bad + duplicates + near_duplicates + leaked + the rows of all splits, each counted once; the
    tokens of `train` are those of an epoch, with what weights repeat.
    """

    rows_read: int
    rows_bad: int  # a missing, empty or wrong-typed field, or too short
    duplicates: int  # the same normalised text again
    near_duplicates: int  # above prepare.similarityPercent
    leaked: int  # training rows that are also in the validation or test files
    vocabulary_size: int
    digest: str  # "sha256:..." of the cleaned rows of all splits, in order
    train: SplitReport
    validation: SplitReport
    test: SplitReport | None
    warnings: tuple[str, ...] = ()
    sources: tuple[SourceReport, ...] = ()  # where there are several


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that a model is trained on. What kind of split it holds, and which facts, the recipe says."""

    train: Split
    validation: Split
    test: Split | None
    facts: Mapping[str, Any]
    tokenizer: TextTokenizer | None  # None: rows that are not made of text
    report: DataReport

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """The tokenizer, for tasks that always have one."""
        assert self.tokenizer is not None
        return self.tokenizer

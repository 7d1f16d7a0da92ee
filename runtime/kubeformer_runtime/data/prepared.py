"""What preparation hands to the trainer: token ids in flat arrays, label names, the tokenizer, a report.

Legend: R rows, B rows of one batch, T tokens of the longest row of a batch, S sequence length, X all tokens
of a split. Arrays may be read-only memory maps of the cache under the checkpoint directory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kubeformer_runtime.data.tokenizer import TextTokenizer

Int32: TypeAlias = NDArray[np.int32]
Int64: TypeAlias = NDArray[np.int64]
Float32: TypeAlias = NDArray[np.float32]

IGNORE = -100  # a target that counts for nothing, as in torch.nn.functional.cross_entropy

# Preparation calls this at least every few seconds, from the loop that does the work, so that a hang shows.
Beat: TypeAlias = Callable[[], None]


@dataclass(frozen=True, slots=True)
class SplitReport:
    """One split, counted after cleaning."""

    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """What happened to the rows between the files and the batches.

    rows_read = rows_bad + duplicates + near_duplicates + leaked + the rows of all splits.
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


@dataclass(frozen=True, slots=True)
class ClassificationSplit:
    """R labelled texts, truncated to max_length tokens, bos and eos included."""

    token_ids_X: Int32
    offsets_R1: Int64  # row r is token_ids_X[offsets_R1[r]:offsets_R1[r + 1]]
    labels_R: Int32  # index into label_names

    def __len__(self) -> int:
        return len(self.labels_R)

    @property
    def lengths_R(self) -> Int64:
        """Tokens of each row."""
        return np.diff(self.offsets_R1)


@dataclass(frozen=True, slots=True)
class LanguageModelSplit:
    """R packed sequences: row r trains positions 0..S-1 to predict 1..S. Only the last may be partly padding."""

    blocks_RS1: Int32  # S + 1 token ids a row; neighbouring rows share one token
    lengths_R: Int64  # valid tokens of each row, 2..S+1

    def __len__(self) -> int:
        return len(self.blocks_RS1)


@dataclass(frozen=True, slots=True)
class PreparedClassification:
    """Everything that a classifier is trained on."""

    train: ClassificationSplit
    validation: ClassificationSplit
    test: ClassificationSplit | None
    label_names: tuple[str, ...]  # sorted; the index is the class
    tokenizer: TextTokenizer
    report: DataReport


@dataclass(frozen=True, slots=True)
class PreparedLanguageModel:
    """Everything that a language model is trained on."""

    train: LanguageModelSplit
    validation: LanguageModelSplit
    test: LanguageModelSplit | None
    tokenizer: TextTokenizer
    report: DataReport


Prepared: TypeAlias = PreparedClassification | PreparedLanguageModel

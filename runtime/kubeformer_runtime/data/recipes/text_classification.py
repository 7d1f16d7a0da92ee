"""textClassification: a text and a label a row become token ids and the number of the label. Legend: see `prepared`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kubeformer.contract.job import JobSettings, TextClassification
from kubeformer.contract.names import Reason
from kubeformer_runtime.data.clean import CleanRow, clean_text, text_of
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepared import Beat, Float32, Int32, Int64, Prepared
from kubeformer_runtime.data.read import BadRow, RawRow
from kubeformer_runtime.data.recipes import Encoded, Parts
from kubeformer_runtime.data.recipes.texts import chunks, clean_field, divided, flattened, given_tokenizer, sampled
from kubeformer_runtime.data.tokenizer import TextTokenizer

_MULTIPLE = 8  # widths of batches are rounded up: fewer different shapes, aligned rows


@dataclass(frozen=True, slots=True)
class ClassificationSplit:
    """R labelled texts, truncated to max_length tokens, bos and eos included."""

    token_ids_X: Int32
    offsets_R1: Int64  # row r is token_ids_X[offsets_R1[r]:offsets_R1[r + 1]]
    labels_R: Int32  # index into the label names

    def __len__(self) -> int:
        return len(self.labels_R)

    @property
    def lengths_R(self) -> Int64:
        """Tokens of each row."""
        return np.diff(self.offsets_R1)

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return len(self.token_ids_X)


@dataclass(frozen=True, slots=True)
class ClassificationBatch:
    """B texts padded to the longest (rounded up to a multiple of 8), with their labels."""

    token_ids_BT: Int32
    lengths_B: Int64
    labels_B: Int64
    weights_B: Float32  # 0 for fillers


class TextClassificationRecipe:
    """See Recipe."""

    split_type = ClassificationSplit

    def __init__(self, settings: JobSettings, task: TextClassification) -> None:
        self.settings, self.task, self.prepare = settings, task, settings.data.prepare

    @property
    def fields(self) -> Mapping[str, str]:
        """See Recipe."""
        where = "task.textClassification"
        return {self.task.text_field: f"{where}.textField", self.task.label_field: f"{where}.labelField"}

    def example(self, row: RawRow) -> CleanRow | BadRow:
        """See Recipe."""
        text = clean_field(row, self.task.text_field, self.prepare)
        if isinstance(text, BadRow):
            return text
        label = text_of(row, self.task.label_field, allow_numbers=True)
        if isinstance(label, BadRow):
            return label
        label = clean_text(label, "NFC" if self.prepare.normalize == "None" else self.prepare.normalize)
        if not label:
            return BadRow(row.place, f"field {self.task.label_field!r} is empty")
        return CleanRow(text, label)

    def texts(self, example: CleanRow) -> Sequence[str]:
        """See Recipe."""
        return (example.text,)

    def key(self, example: CleanRow) -> str:
        """See Recipe."""
        return example.text

    def digest_parts(self, example: CleanRow) -> Iterable[str]:
        """See Recipe."""
        return (example.text, example.label)

    def divide(self, kept: Sequence[CleanRow], validation: Sequence[CleanRow] | None, beat: Beat) -> Parts[CleanRow]:
        """See Recipe; each label gives its share."""
        return divided(self.settings, kept, validation, beat, key=self.key, stratum=lambda row: row.label)

    def tokenizer(self, train: Sequence[CleanRow], beat: Beat) -> TextTokenizer:
        """See Recipe."""
        given, size = given_tokenizer(self.settings), self.settings.data.vocabulary_size
        return given or TextTokenizer.train(sampled(train, self.texts, beat), size, frame_end=True)

    def encode(self, parts: Parts[CleanRow], tokenizer: TextTokenizer | None, beat: Beat) -> Encoded:
        """See Recipe."""
        assert tokenizer is not None
        labels, warnings = _labels(parts, self.task)
        train, validation, test = (
            None if rows is None else encode_classification(rows, tokenizer, labels, self.task.max_length, beat)
            for rows in (parts.train, parts.validation, parts.test)
        )
        assert train is not None
        assert validation is not None
        return Encoded(train, validation, test, {"labels": list(labels)}, warnings)


def recipe(settings: JobSettings) -> TextClassificationRecipe:
    """The recipe of a textClassification."""
    assert isinstance(settings.task, TextClassification)
    return TextClassificationRecipe(settings, settings.task)


def label_names(prepared: Prepared) -> tuple[str, ...]:
    """Label names, sorted; the index is the class."""
    return tuple(prepared.facts["labels"])


def encode_classification(
    rows: Sequence[CleanRow], tokenizer: TextTokenizer, label_names: Sequence[str], max_length: int, beat: Beat
) -> ClassificationSplit:
    """Each text framed by <bos> and <eos> and cut to max_length. Every label must be one of `label_names`."""
    index = {name: number for number, name in enumerate(label_names)}
    framed = (
        ids for chunk in chunks(rows, beat) for ids in tokenizer.encode_framed([row.text for row in chunk], max_length)
    )
    token_ids_X, offsets_R1 = flattened(framed)
    labels_R = np.asarray([index[row.label] for row in rows], dtype=np.int32)
    return ClassificationSplit(token_ids_X, offsets_R1, labels_R)


def classification_batch(
    split: ClassificationSplit, rows_B: Int64, weights_B: Float32, pad_id: int
) -> ClassificationBatch:
    """Gather and pad."""
    begins_B, ends_B = split.offsets_R1[rows_B], split.offsets_R1[rows_B + 1]
    lengths_B = ends_B - begins_B
    width = -(-int(lengths_B.max()) // _MULTIPLE) * _MULTIPLE
    token_ids_BT = np.full((len(rows_B), width), pad_id, dtype=np.int32)
    for row, (begin, end) in enumerate(zip(begins_B, ends_B, strict=True)):
        token_ids_BT[row, : end - begin] = split.token_ids_X[begin:end]
    labels_B = split.labels_R[rows_B].astype(np.int64)
    return ClassificationBatch(token_ids_BT, np.asarray(lengths_B, dtype=np.int64), labels_B, weights_B)


def _labels(parts: Parts[CleanRow], task: TextClassification) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Label names, sorted, and warnings. Raises DataError where they cannot be what the user means."""
    counts = Counter(row.label for row in parts.train)
    labels = tuple(sorted(counts))
    if len(labels) < 2:
        raise DataError(
            Reason.DATA_INVALID,
            f"data: all training rows have the {task.label_field} {labels[0]!r}; a classifier needs two labels or more",
        )
    if len(labels) > 20 and len(labels) * 2 > len(parts.train):
        raise DataError(
            Reason.DATA_INVALID,
            f"data: field {task.label_field!r} has {len(labels)} different values in {len(parts.train)} rows, which "
            "are not labels. Set task.textClassification.labelField",
        )
    for name, part in (("data.validation", parts.validation), ("data.test", parts.test or [])):
        unknown = sorted({row.label for row in part} - set(labels))
        if unknown:
            raise DataError(
                Reason.DATA_INVALID,
                f"{name}: {task.label_field} {', '.join(map(repr, unknown[:5]))} is not among the labels of the "
                f"training rows ({', '.join(map(repr, labels[:10]))}). Correct it, or add training rows that have it",
            )
    rare = [label for label in labels if counts[label] < 5]
    warnings = (f"fewer than five training rows have the label {', '.join(map(repr, rare[:5]))}",) if rare else ()
    return labels, warnings

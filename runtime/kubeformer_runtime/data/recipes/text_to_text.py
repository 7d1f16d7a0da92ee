"""textToText: a source and a target text a row; translation, summarisation, anything that reads one and writes another.

Both are cut into pieces by one tokenizer. Of rows with the same source the first is kept, so that no source is on both
sides of the split, whatever its targets are. Legend: R rows, B rows of a batch, S tokens of the longest source of a
batch, T of the longest target, X all tokens of a split.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kubeformer.contract.job import JobSettings, TextToText
from kubeformer_runtime.data.prepared import IGNORE, Beat, Float32, Int32, Int64
from kubeformer_runtime.data.read import BadRow, RawRow
from kubeformer_runtime.data.recipes import Encoded, Parts
from kubeformer_runtime.data.recipes.texts import chunks, clean_field, divided, flattened, given_tokenizer, sampled
from kubeformer_runtime.data.tokenizer import TextTokenizer

_MULTIPLE = 8  # widths of batches are rounded up: fewer different shapes, aligned rows


@dataclass(frozen=True, slots=True)
class Pair:
    """A text and what is to be made of it."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class TextToTextSplit:
    """R pairs: <bos> source <eos>, and target <eos>."""

    sources_X: Int32
    source_offsets_R1: Int64  # source r is sources_X[source_offsets_R1[r] : source_offsets_R1[r + 1]]
    targets_X: Int32
    target_offsets_R1: Int64

    def __len__(self) -> int:
        return len(self.source_offsets_R1) - 1

    @property
    def tokens(self) -> int:
        """Tokens of both sides."""
        return len(self.sources_X) + len(self.targets_X)

    @property
    def source_lengths_R(self) -> Int64:
        """Tokens of each source."""
        return np.diff(self.source_offsets_R1)

    @property
    def target_lengths_R(self) -> Int64:
        """Tokens of each target, <eos> among them: what is predicted."""
        return np.diff(self.target_offsets_R1)

    def source(self, row: int) -> Int32:
        """Token ids of one source."""
        return self.sources_X[self.source_offsets_R1[row] : self.source_offsets_R1[row + 1]]

    def target(self, row: int) -> Int32:
        """Token ids of one target."""
        return self.targets_X[self.target_offsets_R1[row] : self.target_offsets_R1[row + 1]]


@dataclass(frozen=True, slots=True)
class TextToTextBatch:
    """B pairs, padded. The decoder reads `inputs`: the start token, then the target without its last token."""

    sources_BS: Int32
    source_lengths_B: Int64
    inputs_BT: Int32
    targets_BT: Int64  # IGNORE where nothing is predicted


class TextToTextRecipe:
    """See Recipe."""

    split_type = TextToTextSplit

    def __init__(self, settings: JobSettings, task: TextToText) -> None:
        self.settings, self.task, self.prepare = settings, task, settings.data.prepare

    @property
    def fields(self) -> Mapping[str, str]:
        """See Recipe."""
        spec = "task.textToText"
        return {self.task.source_field: f"{spec}.sourceField", self.task.target_field: f"{spec}.targetField"}

    def example(self, row: RawRow) -> Pair | BadRow:
        """See Recipe."""
        source = clean_field(row, self.task.source_field, self.prepare)
        if isinstance(source, BadRow):
            return source
        target = clean_field(row, self.task.target_field, self.prepare)
        return target if isinstance(target, BadRow) else Pair(source, target)

    def texts(self, example: Pair) -> Sequence[str]:
        """See Recipe."""
        return (example.source, example.target)

    def key(self, example: Pair) -> str:
        """The source: see the module's docstring."""
        return example.source

    def digest_parts(self, example: Pair) -> Iterable[str]:
        """See Recipe."""
        return (example.source, example.target)

    def divide(self, kept: Sequence[Pair], validation: Sequence[Pair] | None, beat: Beat) -> Parts[Pair]:
        """See Recipe."""
        return divided(self.settings, kept, validation, beat, key=self.key)

    def tokenizer(self, train: Sequence[Pair], beat: Beat) -> TextTokenizer:
        """One for both sides: names, numbers and what two languages share are one token on either."""
        given, size = given_tokenizer(self.settings), self.settings.data.vocabulary_size
        return given or TextTokenizer.train(sampled(train, self.texts, beat), size, frame_end=True)

    def encode(self, parts: Parts[Pair], tokenizer: TextTokenizer | None, beat: Beat) -> Encoded:
        """See Recipe."""
        assert tokenizer is not None
        train, validation, test = (
            None if rows is None else encode_pairs(rows, tokenizer, self.task, beat)
            for rows in (parts.train, parts.validation, parts.test)
        )
        assert train is not None
        assert validation is not None
        warnings = []
        for side, lengths_R, most in (
            ("source", train.source_lengths_R, self.task.max_source_length),
            ("target", train.target_lengths_R, self.task.max_target_length),
        ):
            if full := int((lengths_R >= most).sum()):
                warnings.append(f"{full} of {len(train)} training rows fill or exceed the {most} tokens of a {side}")
        return Encoded(train, validation, test, warnings=tuple(warnings))


def recipe(settings: JobSettings) -> TextToTextRecipe:
    """The recipe of a textToText."""
    assert isinstance(settings.task, TextToText)
    return TextToTextRecipe(settings, settings.task)


def encode_pairs(rows: Sequence[Pair], tokenizer: TextTokenizer, task: TextToText, beat: Beat) -> TextToTextSplit:
    """Sources between <bos> and <eos> (where the tokenizer has them), targets ended by <eos>, each cut to its most."""
    after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    room = max(1, task.max_target_length - len(after))
    sources, targets = list[Sequence[int]](), list[Sequence[int]]()
    for chunk in chunks(rows, beat):
        sources += tokenizer.encode_framed([row.source for row in chunk], task.max_source_length)
        targets += [[*ids[:room], *after] for ids in tokenizer.encode([row.target for row in chunk])]
    return TextToTextSplit(*flattened(sources), *flattened(targets))


def text_to_text_batch(
    split: TextToTextSplit, rows_B: Int64, weights_B: Float32, pad_id: int, start_id: int
) -> TextToTextBatch:
    """Gather, pad, and move the targets by one."""
    source_lengths_B = np.asarray(split.source_lengths_R[rows_B], dtype=np.int64)
    sources_BS = np.full((len(rows_B), _rounded(source_lengths_B)), pad_id, dtype=np.int32)
    inputs_BT = np.full((len(rows_B), _rounded(split.target_lengths_R[rows_B])), pad_id, dtype=np.int32)
    targets_BT = np.full(inputs_BT.shape, IGNORE, dtype=np.int64)
    inputs_BT[:, 0] = start_id
    for place, row in enumerate(rows_B):
        source, target = split.source(row), split.target(row)
        sources_BS[place, : len(source)] = source
        inputs_BT[place, 1 : len(target)] = target[:-1]
        if weights_B[place] > 0:
            targets_BT[place, : len(target)] = target
    return TextToTextBatch(sources_BS, source_lengths_B, inputs_BT, targets_BT)


def _rounded(lengths_B: Int64) -> int:
    return -(-int(lengths_B.max()) // _MULTIPLE) * _MULTIPLE

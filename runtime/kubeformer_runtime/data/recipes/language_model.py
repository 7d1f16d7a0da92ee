"""languageModel: a text a row; all texts become one stream, cut into full blocks. Legend as in `prepared`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kubeformer.contract.job import JobSettings, LanguageModel
from kubeformer_runtime.data.clean import CleanRow
from kubeformer_runtime.data.prepared import IGNORE, Beat, Float32, Int32, Int64
from kubeformer_runtime.data.read import BadRow, RawRow
from kubeformer_runtime.data.recipes import Encoded, Parts
from kubeformer_runtime.data.recipes.texts import chunks, clean_field, divided, flattened, given_tokenizer, sampled
from kubeformer_runtime.data.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class LanguageModelSplit:
    """R packed sequences: row r trains positions 0..S-1 to predict 1..S. Only the last may be partly padding."""

    blocks_RS1: Int32  # S + 1 token ids a row; neighbouring rows share one token
    lengths_R: Int64  # valid tokens of each row, 2..S+1
    text_bytes_1: Int64  # UTF-8 bytes of all texts, one number

    def __len__(self) -> int:
        return len(self.blocks_RS1)

    @property
    def tokens(self) -> int:
        """Tokens of the stream."""
        return int((self.lengths_R - 1).sum()) + (1 if len(self) else 0)


@dataclass(frozen=True, slots=True)
class LanguageModelBatch:
    """B sequences; targets are the inputs moved by one, IGNORE where nothing is to be predicted or weight is 0."""

    inputs_BS: Int32
    targets_BS: Int64


class LanguageModelRecipe:
    """See Recipe."""

    split_type = LanguageModelSplit

    def __init__(self, settings: JobSettings, task: LanguageModel) -> None:
        self.settings, self.task, self.prepare = settings, task, settings.data.prepare

    @property
    def fields(self) -> Mapping[str, str]:
        """See Recipe."""
        return {self.task.text_field: "task.languageModel.textField"}

    def example(self, row: RawRow) -> CleanRow | BadRow:
        """See Recipe."""
        text = clean_field(row, self.task.text_field, self.prepare)
        return text if isinstance(text, BadRow) else CleanRow(text)

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
        """See Recipe."""
        return divided(self.settings, kept, validation, beat, key=self.key)

    def tokenizer(self, train: Sequence[CleanRow], beat: Beat) -> TextTokenizer:
        """See Recipe."""
        given, size = given_tokenizer(self.settings), self.settings.data.vocabulary_size
        return given or TextTokenizer.train(sampled(train, self.texts, beat), size)

    def encode(self, parts: Parts[CleanRow], tokenizer: TextTokenizer | None, beat: Beat) -> Encoded:
        """See Recipe."""
        assert tokenizer is not None
        train, validation, test = (
            None if rows is None else encode_language_model(rows, tokenizer, self.task.sequence_length, beat)
            for rows in (parts.train, parts.validation, parts.test)
        )
        assert train is not None
        assert validation is not None
        return Encoded(train, validation, test)


def recipe(settings: JobSettings) -> LanguageModelRecipe:
    """The recipe of a languageModel."""
    assert isinstance(settings.task, LanguageModel)
    return LanguageModelRecipe(settings, settings.task)


def encode_language_model(
    rows: Sequence[CleanRow], tokenizer: TextTokenizer, sequence_length: int, beat: Beat
) -> LanguageModelSplit:
    """All texts in one stream (<bos> text <eos> each), cut into blocks that overlap by the token to be predicted.

    Where <bos> and <eos> are one token (GPT-2's <|endoftext|>) it stands between two texts once.
    """
    before = [] if tokenizer.bos_id in (None, tokenizer.eos_id) else [tokenizer.bos_id]
    after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    stream_X, _ = flattened(
        [*before, *ids, *after] for chunk in chunks(rows, beat) for ids in tokenizer.encode([row.text for row in chunk])
    )
    return pack(stream_X, sequence_length, tokenizer.pad_id, sum(len(row.text.encode()) for row in rows))


def pack(stream_X: Int32, sequence_length: int, pad_id: int, text_bytes: int = 0) -> LanguageModelSplit:
    """Cut a stream into blocks of S + 1 tokens, each beginning with the last token of the one before.

    So every token but the first is predicted exactly once. The last block is padded.
    """
    predicted = max(0, len(stream_X) - 1)
    count = -(-predicted // sequence_length)
    blocks_RS1 = np.full((count, sequence_length + 1), pad_id, dtype=np.int32)
    lengths_R = np.full(count, sequence_length + 1, dtype=np.int64)
    for row in range(count):
        part = stream_X[row * sequence_length : (row + 1) * sequence_length + 1]
        blocks_RS1[row, : len(part)] = part
        lengths_R[row] = len(part)
    return LanguageModelSplit(blocks_RS1, lengths_R, np.asarray([text_bytes], dtype=np.int64))


def language_model_batch(split: LanguageModelSplit, rows_B: Int64, weights_B: Float32) -> LanguageModelBatch:
    """Gather and shift."""
    blocks_BS1 = split.blocks_RS1[rows_B]
    targets_BS = blocks_BS1[:, 1:].astype(np.int64)
    positions_S = np.arange(targets_BS.shape[1])
    beyond_BS = positions_S[None, :] >= (split.lengths_R[rows_B] - 1)[:, None]
    targets_BS[beyond_BS | (weights_B == 0)[:, None]] = IGNORE
    return LanguageModelBatch(np.ascontiguousarray(blocks_BS1[:, :-1]), targets_BS)

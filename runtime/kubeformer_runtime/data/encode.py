"""Clean rows to arrays: framed and cut for a classifier, packed for a language model. Legend as in `prepared`."""

from collections.abc import Iterator, Sequence

import numpy as np

from kubeformer_runtime.data.clean import CleanRow
from kubeformer_runtime.data.prepared import Beat, ClassificationSplit, Int32, LanguageModelSplit
from kubeformer_runtime.data.tokenizer import TextTokenizer

_CHUNK_ROWS = 256


def _chunks(rows: Sequence[CleanRow], beat: Beat) -> Iterator[Sequence[CleanRow]]:
    for begin in range(0, len(rows), _CHUNK_ROWS):
        beat()
        yield rows[begin : begin + _CHUNK_ROWS]


def encode_classification(
    rows: Sequence[CleanRow], tokenizer: TextTokenizer, label_names: Sequence[str], max_length: int, beat: Beat
) -> ClassificationSplit:
    """Each text framed by <bos> and <eos> and cut to max_length. Every label must be one of `label_names`."""
    index = {name: number for number, name in enumerate(label_names)}
    parts: list[Int32] = []
    lengths: list[int] = []
    for chunk in _chunks(rows, beat):
        for ids in tokenizer.encode_framed([row.text for row in chunk], max_length):
            parts.append(np.asarray(ids, dtype=np.int32))
            lengths.append(len(ids))
    offsets_R1 = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets_R1[1:])
    return ClassificationSplit(
        token_ids_X=np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32),
        offsets_R1=offsets_R1,
        labels_R=np.asarray([index[row.label] for row in rows], dtype=np.int32),
    )


def encode_language_model(
    rows: Sequence[CleanRow], tokenizer: TextTokenizer, sequence_length: int, beat: Beat
) -> LanguageModelSplit:
    """All texts in one stream (<bos> text <eos> each), cut into blocks that overlap by the token to be predicted.

    Where <bos> and <eos> are one token (GPT-2's <|endoftext|>) it stands between two texts once.
    """
    before = [] if tokenizer.bos_id in (None, tokenizer.eos_id) else [tokenizer.bos_id]
    after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    parts: list[Int32] = []
    for chunk in _chunks(rows, beat):
        for ids in tokenizer.encode([row.text for row in chunk]):
            parts.append(np.asarray([*before, *ids, *after], dtype=np.int32))
    stream_X = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return pack(stream_X, sequence_length, tokenizer.pad_id)


def pack(stream_X: Int32, sequence_length: int, pad_id: int) -> LanguageModelSplit:
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
    return LanguageModelSplit(blocks_RS1, lengths_R)

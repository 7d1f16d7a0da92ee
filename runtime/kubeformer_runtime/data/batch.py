"""Arrays of one step, from the rows that `order` chose. Legend as in `prepared`."""

from dataclasses import dataclass

import numpy as np

from kubeformer_runtime.data.prepared import IGNORE, ClassificationSplit, Float32, Int32, Int64, LanguageModelSplit

_MULTIPLE = 8  # widths of batches are rounded up: fewer different shapes, aligned rows


@dataclass(frozen=True, slots=True)
class ClassificationBatch:
    """B texts padded to the longest (rounded up to a multiple of 8), with their labels."""

    token_ids_BT: Int32
    lengths_B: Int64
    labels_B: Int64
    weights_B: Float32  # 0 for fillers


@dataclass(frozen=True, slots=True)
class LanguageModelBatch:
    """B sequences; targets are the inputs moved by one, IGNORE where nothing is to be predicted or weight is 0."""

    inputs_BS: Int32
    targets_BS: Int64


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


def language_model_batch(split: LanguageModelSplit, rows_B: Int64, weights_B: Float32) -> LanguageModelBatch:
    """Gather and shift."""
    blocks_BS1 = split.blocks_RS1[rows_B]
    targets_BS = blocks_BS1[:, 1:].astype(np.int64)
    positions_S = np.arange(targets_BS.shape[1])
    beyond_BS = positions_S[None, :] >= (split.lengths_R[rows_B] - 1)[:, None]
    targets_BS[beyond_BS | (weights_B == 0)[:, None]] = IGNORE
    return LanguageModelBatch(np.ascontiguousarray(blocks_BS1[:, :-1]), targets_BS)

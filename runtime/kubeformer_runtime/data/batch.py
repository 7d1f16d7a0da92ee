"""Arrays of one step, from the rows that `order` chose. Legend as in `prepared`."""

from dataclasses import dataclass

from kubeformer_runtime.data.prepared import ClassificationSplit, Float32, Int32, Int64, LanguageModelSplit


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
    raise NotImplementedError


def language_model_batch(split: LanguageModelSplit, rows_B: Int64, weights_B: Float32) -> LanguageModelBatch:
    """Gather and shift."""
    raise NotImplementedError

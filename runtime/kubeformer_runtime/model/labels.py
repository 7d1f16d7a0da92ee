"""Names of classes, as every classifier's config.json has them: id2label and label2id. Standard library only."""

from collections.abc import Mapping, Sequence
from typing import Any

from kubeformer_runtime.model.decoder_config import CONFIG_FILE
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.reading import Fields


def read_labels(fields: Fields) -> tuple[str, ...]:
    """The name of each class, by number; where none are given, transformers' LABEL_0 and so on, two by default.

    Raises:
        ModelError: a number is left out.
    """
    names: Mapping[str, Any] = fields.mapping("id2label")
    if not names:
        return tuple(f"LABEL_{index}" for index in range(fields.integer("num_labels", 2)))
    if set(names) != {str(index) for index in range(len(names))}:
        raise ModelError(f"{CONFIG_FILE}: the keys of id2label have to be the numbers from 0 to {len(names) - 1}")
    return tuple(str(names[str(index)]) for index in range(len(names)))


def labels_to_json(labels: Sequence[str]) -> dict[str, Any]:
    """Both directions."""
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }

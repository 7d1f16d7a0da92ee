"""DecoderClassifierConfig: a language model with a classification head, from and to its config.json.

Standard library only; see decoder_classifier.py for what is computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubeformer_runtime.model.decoder_config import ARCHITECTURES, CONFIG_FILE, LlamaConfig
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.labels import labels_to_json, read_labels
from kubeformer_runtime.model.reading import Fields

# LlamaForSequenceClassification: LlamaForCausalLM, and so on.
DECODER_CLASSIFIERS = {
    name.replace("ForCausalLM", "ForSequenceClassification").replace("LMHeadModel", "ForSequenceClassification"): name
    for name in ARCHITECTURES
}


@dataclass(frozen=True, slots=True)
class DecoderClassifierConfig:
    """A decoder and the classes it tells apart."""

    decoder: LlamaConfig
    labels: tuple[str, ...]  # index = class

    @property
    def vocabulary_size(self) -> int:
        """Of the decoder."""
        return self.decoder.vocabulary_size

    @property
    def width(self) -> int:
        """Of the decoder."""
        return self.decoder.width

    @property
    def layers(self) -> int:
        """Of the decoder."""
        return self.decoder.layers

    @property
    def mlp_width(self) -> int:
        """Of the decoder."""
        return self.decoder.mlp_width

    @property
    def max_length(self) -> int:
        """Tokens a text may have."""
        return self.decoder.max_length

    @property
    def pad_token_id(self) -> int:
        """Without it nobody could tell where a text ends."""
        assert self.decoder.pad_token_id is not None  # see check
        return self.decoder.pad_token_id

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "DecoderClassifierConfig":
        """Reads a config.json whose architecture is one of DECODER_CLASSIFIERS. Raises ModelError."""
        name = architecture_of(document)
        if name is None:
            raise ModelError(f"{CONFIG_FILE}: this is none of {', '.join(DECODER_CLASSIFIERS)}")
        decoder = LlamaConfig.from_json({**document, "architectures": [DECODER_CLASSIFIERS[name]]})
        config = cls(decoder, read_labels(Fields(CONFIG_FILE, document)))
        config.check()
        return config

    def check(self) -> None:
        """Raises ModelError where something is missing."""
        self.decoder.check()
        if self.decoder.pad_token_id is None:
            raise ModelError(f"{CONFIG_FILE}: pad_token_id is missing; the last token before the padding is classified")
        if len(self.labels) < 2:
            raise ModelError(f"a classifier needs two labels or more, not {len(self.labels)}")

    def to_json(self) -> dict[str, Any]:
        """config.json as transformers and vLLM read it."""
        document = self.decoder.to_json()
        name = next(ours for ours, theirs in DECODER_CLASSIFIERS.items() if theirs == document["architectures"][0])
        head = {"architectures": [name], "problem_type": "single_label_classification"}
        return document | head | labels_to_json(self.labels)


def architecture_of(document: Mapping[str, Any]) -> str | None:
    """Which of DECODER_CLASSIFIERS a config.json names; None: none of them."""
    names = document.get("architectures")
    if not isinstance(names, list):
        return None
    return next((name for name in names if isinstance(name, str) and name in DECODER_CLASSIFIERS), None)

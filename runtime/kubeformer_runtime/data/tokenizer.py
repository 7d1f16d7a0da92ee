"""TextTokenizer: a Hugging Face `tokenizer.json` beside its `tokenizer_config.json`, trained here or loaded.

Ours is a byte-level BPE with the special tokens <pad> (0), <bos> (1) and <eos> (2): every text has token ids,
so there is no <unk>. A model's own tokenizer is taken as it is; its special tokens come from its
configuration.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer


class TextTokenizer:
    """Text to token ids and back. `directory` holds the files, which the model's publisher copies."""

    def __init__(
        self, tokenizer: Tokenizer, *, pad_id: int, bos_id: int | None, eos_id: int | None, files: dict[str, bytes]
    ) -> None:
        self._tokenizer = tokenizer
        self.pad_id = pad_id
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.files = files

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below this number, special tokens included."""
        raise NotImplementedError

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        raise NotImplementedError

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids; special tokens are left out."""
        raise NotImplementedError

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and what else the tokenizer came with (e.g. a chat template)."""
        raise NotImplementedError

    @classmethod
    def load(cls, directory: Path) -> "TextTokenizer":
        """Read a directory in Hugging Face layout. Raises DataError(ModelInvalid) where a file is missing or broken."""
        raise NotImplementedError

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int) -> "TextTokenizer":
        """Train a byte-level BPE. The result depends on the texts alone."""
        raise NotImplementedError

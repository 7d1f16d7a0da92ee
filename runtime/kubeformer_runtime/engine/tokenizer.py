"""EngineTokenizer: a model directory's tokenizer.json with what serving needs beside it.

Special tokens and the chat template come from tokenizer_config.json, chat_template.jinja and
generation_config.json, whichever has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from kubeformer.contract.names import Reason
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.reading import read_json

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class EngineTokenizer:
    """Text to token ids and back. Thread-safe: nothing changes after loading."""

    tokenizer: Tokenizer
    special_tokens: dict[str, str] = field(default_factory=dict)  # bos_token, eos_token, ... for the chat template
    chat_template: str | None = None

    @classmethod
    def load(cls, directory: Path) -> "EngineTokenizer":
        """Read a directory. Raises ModelError where a file is missing or cannot be read."""
        path = directory / TOKENIZER_FILE
        if not path.is_file():
            raise ModelError(f"{directory} has no {TOKENIZER_FILE}", Reason.MODEL_NOT_FOUND)
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise ModelError(f"{path} is no tokenizer: {error}") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        path = directory / TOKENIZER_CONFIG
        config = read_json(path) if path.is_file() else {}
        special = {name: _content(name, config[name]) for name in SPECIAL_TOKENS if config.get(name)}
        template = _template(config.get("chat_template"))
        if (file := directory / "chat_template.jinja").is_file():
            try:
                template = file.read_text("utf-8")
            except UnicodeDecodeError as error:
                raise ModelError(f"{file} is not UTF-8: {error}") from None
        return cls(tokenizer, special, template)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the tokenizer's end-of-sequence token."""
        token = self.special_tokens.get("eos_token")
        found: int | None = self.tokenizer.token_to_id(token) if token else None
        return found

    @property
    def largest_token_id(self) -> int:
        """The largest id that a text can become; -1 where there are none."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @property
    def vocabulary_size(self) -> int:
        """Number of known token ids."""
        size: int = self.tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def word_tokens(self, word: str) -> list[tuple[int, ...]]:
        """How a text may write a word: at its beginning, and after a space where that takes other tokens.

        As in vLLM, the form after a space counts only where it is as long; a longer one begins with the space and
        ends in the first form.
        """
        word = word.lstrip()
        first = tuple(self.encode(word, add_special_tokens=False))
        spaced = tuple(self.encode(f" {word}", add_special_tokens=False))
        return [first, spaced] if len(spaced) == len(first) and spaced[:1] != first[:1] else [first]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Token ids of several texts."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def encode_framed(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """<bos> text <eos>, the text cut so that at most `max_length` ids remain: as a classifier was trained on it.

        The frame follows tokenizer_config.json, as in training (data/tokenizer.py), and not tokenizer.json, which
        may have none.
        """
        before, after = self._special("bos_token"), self._special("eos_token")
        room = max(1, max_length - len(before) - len(after))
        return [[*before, *ids[:room], *after] for ids in self.encode_batch(texts, add_special_tokens=False)]

    def _special(self, name: str) -> list[int]:
        token = self.special_tokens.get(name)
        number: int | None = self.tokenizer.token_to_id(token) if token else None
        return [] if number is None else [number]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text


def _content(name: str, token: object) -> str:
    """A special token's text: a string, or the content of an AddedToken."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ModelError(f"{TOKENIZER_CONFIG}: {name} has to be a string or an object with content, not {token!r}")
    return text


def _template(value: object) -> str | None:
    """The chat template; of several by name the one called default."""
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, dict) and item.get("name") == "default"]
        value = named[0].get("template") if named else None
    if value is not None and not isinstance(value, str):
        raise ModelError(f"{TOKENIZER_CONFIG}: chat_template has to be a string or a list of named ones")
    return value

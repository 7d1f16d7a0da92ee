"""TextTokenizer: a Hugging Face `tokenizer.json` beside its `tokenizer_config.json`, trained here or loaded.

Ours is a byte-level BPE with the special tokens <pad> (0), <bos> (1) and <eos> (2): every text has token ids,
so there is no <unk>. A model's own tokenizer is taken as it is; its special tokens come from its
configuration.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.durable import write_bytes

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SMALLEST_VOCABULARY = 256 + 3  # every byte and the special tokens
_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
# What belongs to a tokenizer in Hugging Face's layout, and travels with the model.
_FILES = (
    _TOKENIZER,
    _CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    "vocab.json",
    "merges.txt",
)


class TextTokenizer:
    """Text to token ids and back. `files` are its files by name, as bytes."""

    def __init__(
        self, tokenizer: Tokenizer, *, pad_id: int, bos_id: int | None, eos_id: int | None, files: dict[str, bytes]
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.pad_id = pad_id
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.files = files

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below this number, special tokens included."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_places(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """As encode, with the characters (from, to) of its text that each token stands for."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in found]

    @property
    def special_tokens(self) -> frozenset[str]:
        """Tokens that stand for no text, as they are written."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    def named_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, pad_token, ... as chat templates ask for them."""
        special = {**_json(self.files, "special_tokens_map.json"), **_json(self.files, _CONFIG)}
        found = {name: special.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
        return {name: text for name, text in texts.items() if isinstance(text, str)}

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template that came with the files; of several by name the one called default."""
        if CHAT_TEMPLATE in self.files:
            return self.files[CHAT_TEMPLATE].decode()
        value = _json(self.files, _CONFIG).get("chat_template")
        if isinstance(value, list):
            value = next((item.get("template") for item in value if item.get("name") == "default"), None)
        return value if isinstance(value, str) else None

    def with_chat_template(self, source: str) -> "TextTokenizer":
        """The same tokenizer, whose files carry another chat template."""
        files = {**self.files, CHAT_TEMPLATE: source.encode()}
        return TextTokenizer(self._tokenizer, pad_id=self.pad_id, bos_id=self.bos_id, eos_id=self.eos_id, files=files)

    def token_id(self, token: str) -> int | None:
        """The id of one token, written as in the vocabulary; None where it has none."""
        return _token_id(self._tokenizer, token)

    def encode_framed(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """<bos> text <eos>, the text cut so that at most `max_length` ids remain: what a classifier reads."""
        before = [] if self.bos_id is None else [self.bos_id]
        after = [] if self.eos_id is None else [self.eos_id]
        room = max(1, max_length - len(before) - len(after))
        return [[*before, *ids[:room], *after] for ids in self.encode(texts)]

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids; special tokens are left out."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and what else it came with (e.g. a chat template)."""
        for name, content in self.files.items():
            write_bytes(directory / name, content)

    @classmethod
    def load(cls, directory: Path) -> "TextTokenizer":
        """Read a directory in Hugging Face layout. Raises DataError(ModelInvalid) where a file is missing or broken."""
        files = {name: (directory / name).read_bytes() for name in _FILES if (directory / name).is_file()}
        if _TOKENIZER not in files:
            raise DataError(Reason.MODEL_INVALID, f"the model has no {_TOKENIZER}; save it with its tokenizer")
        try:
            tokenizer = Tokenizer.from_str(files[_TOKENIZER].decode())
        except Exception as error:  # the library raises bare Exception
            raise DataError(Reason.MODEL_INVALID, f"the model's {_TOKENIZER} cannot be read: {error}") from error
        special = {**_json(files, "special_tokens_map.json"), **_json(files, _CONFIG)}
        bos, eos, pad = (_token_id(tokenizer, special.get(f"{name}_token")) for name in ("bos", "eos", "pad"))
        # BERT's frame has other names: [CLS] text [SEP].
        bos = bos if bos is not None else _token_id(tokenizer, special.get("cls_token"))
        eos = eos if eos is not None else _token_id(tokenizer, special.get("sep_token"))
        pad = pad if pad is not None else eos if eos is not None else 0
        return cls(tokenizer, pad_id=pad, bos_id=bos, eos_id=eos, files=files)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocabulary_size: int,
        *,
        frame_end: bool = False,
        more_tokens: Sequence[str] = (),
        end: str = EOS,
    ) -> "TextTokenizer":
        """Train a byte-level BPE. The result depends on the texts alone.

        `frame_end`: others that load the files get <bos> text <eos> (a classifier) and not <bos> text (a
        language model). `more_tokens` are special too; `end` is the one that ends what a model writes.
        Raises DataError(SettingsInvalid) where the vocabulary cannot hold every byte.
        """
        specials = [PAD, BOS, EOS, *more_tokens]
        if vocabulary_size < SMALLEST_VOCABULARY:
            raise DataError(
                Reason.SETTINGS_INVALID,
                f"data.tokenizer.train.vocabularySize is {vocabulary_size}; a byte-level vocabulary needs "
                f"{SMALLEST_VOCABULARY} at least",
            )
        # In worker processes the library would only compete with the ranks for the same cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A {EOS}" if frame_end else f"{BOS} $A", special_tokens=[(BOS, 1), (EOS, 2)]
        )
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PAD,
            "bos_token": BOS,
            "eos_token": end,
            "clean_up_tokenization_spaces": False,
        }
        files = {_TOKENIZER: tokenizer.to_str(pretty=True).encode(), _CONFIG: json.dumps(config, indent=2).encode()}
        return cls(tokenizer, pad_id=0, bos_id=1, eos_id=specials.index(end), files=files)


def _json(files: dict[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise DataError(Reason.MODEL_INVALID, f"the model's {name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(Reason.MODEL_INVALID, f"the model's {name} holds no object")
    return value


def _token_id(tokenizer: Tokenizer, token: object) -> int | None:
    if isinstance(token, dict):  # an AddedToken, written out
        token = token.get("content")
    if not isinstance(token, str):
        return None
    number = tokenizer.token_to_id(token)
    return number if isinstance(number, int) else None

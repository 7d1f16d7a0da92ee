"""What recipes over texts share: clean fields, the tokenizer, cutting work into pieces between beats."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from kubeformer.contract.job import JobSettings, Prepare
from kubeformer.contract.names import Reason
from kubeformer_runtime.data.clean import BEAT_EVERY_ROWS, clean_text, text_of
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepared import Beat, Int32, Int64
from kubeformer_runtime.data.read import BadRow, RawRow
from kubeformer_runtime.data.recipes import Parts
from kubeformer_runtime.data.split import split_rows
from kubeformer_runtime.data.tokenizer import TextTokenizer

T = TypeVar("T")
TOKENIZER_CHARACTERS = 50_000_000  # more text makes a BPE slower, not better
_CHUNK_ROWS = 256


def clean_field(row: RawRow, name: str, prepare: Prepare) -> str | BadRow:
    """A text field, cleaned as data.prepare says, or why it cannot be used."""
    text = text_of(row, name, allow_numbers=False)
    if isinstance(text, BadRow):
        return text
    text = clean_text(text, prepare.normalize)
    if len(text) < max(1, prepare.min_characters):
        limit = f", fewer than data.prepare.minCharacters ({prepare.min_characters})" if text else ""
        return BadRow(row.place, f"field {name!r} has {len(text)} characters after cleaning{limit}")
    return text


def divided(
    settings: JobSettings,
    kept: Sequence[T],
    validation: Sequence[T] | None,
    beat: Beat,
    *,
    key: Callable[[T], str],
    stratum: Callable[[T], str] = lambda _: "",
) -> Parts[T]:
    """Training and validation: as the user gave them, or split as data.validation says. See `split.split_rows`."""
    if validation is not None:
        return Parts(kept, validation, None)
    data = settings.data
    percent = data.prepare.similarity_percent if data.keep_together == "Near" else None
    seed = settings.training.seed
    sides = split_rows(
        kept, data.validation_percent, seed, key=key, stratum=stratum, similarity_percent=percent, beat=beat
    )
    return Parts(*sides, None)


def given_tokenizer(settings: JobSettings) -> TextTokenizer | None:
    """The base model's tokenizer, or that of data.tokenizer; None where one has to be trained.

    Raises DataError where it cannot be read.
    """
    base, own = settings.model.base, settings.data.tokenizer
    for field, location in (("model", base), ("data.tokenizer", own)):
        if location is not None:
            if not Path(location.path).is_dir():
                raise DataError(Reason.MODEL_NOT_FOUND, f"{field}: no directory at {location.uri}")
            return TextTokenizer.load(Path(location.path))
    return None


def sampled(examples: Sequence[T], texts: Callable[[T], Sequence[str]], beat: Beat) -> Iterator[str]:
    """Texts of every n-th example, so that a tokenizer sees at most about TOKENIZER_CHARACTERS of all parts of it."""
    total = sum(len(text) for example in examples for text in texts(example))
    step = -(-total // TOKENIZER_CHARACTERS)
    for number, example in enumerate(examples[:: max(1, step)]):
        if number % BEAT_EVERY_ROWS == 0:
            beat()
        yield from texts(example)


def chunks(rows: Sequence[T], beat: Beat) -> Iterator[Sequence[T]]:
    """Pieces of a few hundred rows, with a beat before each."""
    for begin in range(0, len(rows), _CHUNK_ROWS):
        beat()
        yield rows[begin : begin + _CHUNK_ROWS]


def flattened(rows: Iterable[Sequence[int]]) -> tuple[Int32, Int64]:
    """(all ids in one array, where each row begins and the last ends): row r is ids[offsets[r] : offsets[r + 1]]."""
    parts = [np.asarray(ids, dtype=np.int32) for ids in rows]
    offsets_R1 = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=offsets_R1[1:])
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), offsets_R1

"""Files to rows. JSON Lines, CSV, TSV and plain text, each also compressed with gzip (.gz) or Zstandard (.zst), and
Parquet: by suffix, or all in the format that a source names.

A row is a mapping of field to value with the place it came from; what cannot be read as a row is a BadRow.
Plain text has one field, the text field, and one row a paragraph (paragraphs are parted by blank lines).
"""

import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from kubeformer.contract import names
from kubeformer.contract.base import Location
from kubeformer.contract.job import Format
from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError

Value: TypeAlias = object

_JSON = frozenset({".jsonl", ".ndjson", ".json"})
_TABLES = {".csv": ",", ".tsv": "\t"}
_TEXTS = frozenset({".txt", ".text", ".md"})
_PARQUET = frozenset({".parquet"})
_SUFFIXES = (
    "*.jsonl, *.ndjson, *.json (one object a line), *.csv, *.tsv, *.txt, *.text, *.md, each also with .gz or .zst, and "
    "*.parquet"
)
_COMPRESSED = frozenset({".gz", ".zst"})
_SUFFIX_OF: Mapping[Format, str] = {"JSONLines": ".jsonl", "CSV": ".csv", "Parquet": ".parquet", "Text": ".txt"}
_BATCH_ROWS = 1024
csv.field_size_limit(1 << 30)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row came from; a message shows it."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it lies in the file."""

    place: Place
    fields: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class BadRow:
    """Something that is no row, or a row that cannot be used, and why."""

    place: Place
    why: str


def shown(path: Path) -> str:
    """A path in the pod as its owner wrote it."""
    text = str(path)
    for prefix, scheme in ((names.CLAIMS_DIRECTORY, "pvc://"), (names.CONFIG_MAPS_DIRECTORY, "configmap://")):
        if text.startswith(prefix + "/"):
            return scheme + text[len(prefix) + 1 :]
    return text


def find_files(location: Location, field: str, format: Format = "Auto") -> list[Path]:
    """The files of a location, sorted. `field` is its name in the spec, for messages. Raises DataError.

    With a format named, files may have any suffix.
    """
    path = Path(location.path)
    if path.is_dir():
        found = [p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        files = sorted(p for p in found if p.is_file() and (_suffix(p)[0] or format != "Auto"))
        if not files:
            raise DataError(
                Reason.DATA_NOT_FOUND, f"{field}: {location.uri} is a directory without data files ({_SUFFIXES})"
            )
        return files
    if path.is_file():
        files = [path]
    else:
        files = sorted(p for p in map(Path, glob.glob(location.path, recursive=True)) if p.is_file())
    if not files:
        raise DataError(
            Reason.DATA_NOT_FOUND,
            f"{field}: no file at {location.uri}; {_nearby(path)}. Upload it, or correct {field}.uri",
        )
    for file in files:
        if not _suffix(file)[0] and format == "Auto":
            raise DataError(Reason.DATA_INVALID, f"{field}: {shown(file)} is none of {_SUFFIXES}; rename or convert it")
    return files


def _nearby(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    try:
        names_there = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f"{shown(parent)} cannot be listed: {error.strerror}"
    if not names_there:
        return f"{shown(parent)} is empty"
    return f"{shown(parent)} has " + ", ".join(names_there[:8]) + (", ..." if len(names_there) > 8 else "")


def _suffix(path: Path) -> tuple[str, str]:
    """The suffix that says the format (empty: none we know), and that of the compression (empty: none)."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = suffixes[-1] if suffixes and suffixes[-1] in _COMPRESSED else ""
    suffix = (suffixes[:-1] if compressed else suffixes)[-1:]
    known = suffix and (suffix[0] in _JSON or suffix[0] in _TABLES or suffix[0] in _TEXTS | _PARQUET)
    return (suffix[0] if known else ""), compressed


def read_rows(files: list[Path], text_field: str, format: Format = "Auto") -> Iterator[RawRow | BadRow]:
    """All rows of all files, in order. Raises DataError where a file cannot be read at all."""
    for path in files:
        found = _suffix(path)[0]
        suffix = found if format == "Auto" or (format == "CSV" and found == ".tsv") else _SUFFIX_OF[format]
        if suffix in _PARQUET:
            yield from _parquet(path)
            continue
        with _opened(path) as stream:
            if suffix in _JSON:
                yield from _json_lines(stream, shown(path))
            elif suffix in _TABLES:
                yield from _table(stream, shown(path), _TABLES[suffix])
            else:
                yield from _paragraphs(stream, shown(path), text_field)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            compression = _suffix(path)[1]
            if compression == ".zst":
                import pyarrow

                with pyarrow.CompressedInputStream(file, "zstd") as stream:
                    yield cast(BinaryIO, io.BufferedReader(_Readable(stream)))
            else:
                yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compression == ".gz" else file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(Reason.DATA_INVALID, f"{shown(path)} is not a whole gzip file: {error}") from error
    except OSError as error:
        if error.errno is None and path.suffix.lower() == ".zst":
            raise DataError(Reason.DATA_INVALID, f"{shown(path)} is not a whole zst file: {error}") from error
        raise DataError(Reason.DATA_NOT_FOUND, f"{shown(path)} cannot be read: {error.strerror or error}") from error


class _Readable(io.RawIOBase):
    """pyarrow's stream, as Python's readers want it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content: bytes = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _parquet(path: Path) -> Iterator[RawRow | BadRow]:
    """Rows of a Parquet file, a few at a time; a place's line is the row's number from 1."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield RawRow(Place(shown(path), number), fields)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            Reason.DATA_INVALID, f"{shown(path)} cannot be read as Parquet after row {number}: {error}"
        ) from error


def _json_lines(stream: BinaryIO, file: str) -> Iterator[RawRow | BadRow]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        place = Place(file, number)
        try:
            value = json.loads(line)
        except UnicodeDecodeError:
            yield BadRow(place, "the line is not UTF-8")
        except (ValueError, RecursionError) as error:
            yield BadRow(place, f"the line is not JSON ({error})")
        else:
            if isinstance(value, dict):
                yield RawRow(place, value)
            else:
                yield BadRow(place, f"the line holds {kind_of(value)}, not an object")


def _table(stream: BinaryIO, file: str, delimiter: str) -> Iterator[RawRow | BadRow]:
    # surrogateescape keeps bytes that are not UTF-8 visible, so that the one row is bad and not the file.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(Place(file, reader.line_num), f"the row is not CSV ({error})")
            continue
        if not cells:
            continue
        place = Place(file, reader.line_num)
        if header is None:
            header = [cell.strip() for cell in cells]
        elif len(cells) != len(header):
            yield BadRow(place, f"the row has {len(cells)} fields, the header {len(header)}")
        else:
            yield RawRow(place, dict(zip(header, cells, strict=True)))


def _paragraphs(stream: BinaryIO, file: str, text_field: str) -> Iterator[RawRow | BadRow]:
    begin, lines = 1, list[str]()
    for number, raw in enumerate(stream, start=1):
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")
        if line.strip():
            if not lines:
                begin = number
            lines.append(line)
        elif lines:
            yield RawRow(Place(file, begin), {text_field: "".join(lines)})
            lines = []
    if lines:
        yield RawRow(Place(file, begin), {text_field: "".join(lines)})


def kind_of(value: Value) -> str:
    """A JSON value's type in a user's words."""
    if value is None:
        return "null"
    kinds: list[tuple[type, str]] = [(bool, "true or false"), (str, "a text"), (int, "a number"), (float, "a number")]
    kinds += [(list, "a list"), (dict, "an object")]
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)

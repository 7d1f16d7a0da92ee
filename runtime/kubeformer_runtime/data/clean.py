"""Rows to examples: normalised text, and a verdict on how many rows are bad. What an example is, a recipe says.

Cleaning removes what a tokenizer should not have to learn (control characters, several forms of one letter,
runs of white space) and nothing that a reader would miss. `normalize: None` leaves the text as it is.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

from kubeformer.contract.job import Prepare
from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepared import Beat
from kubeformer_runtime.data.read import BadRow, RawRow, kind_of

_LINE_ENDS = re.compile(r"\r\n?")
# Cc but tab and newline; what is left of a text that was not UTF-8 is dealt with as a bad row.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BLANKS = re.compile(r"[^\S\n]+")
_AROUND_NEWLINE = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{3,}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
BEAT_EVERY_ROWS = 200
Example = TypeVar("Example")
Normalize: TypeAlias = Literal["NFC", "NFKC", "None"]


@dataclass(frozen=True, slots=True)
class CleanRow:
    """A row of a text, and its label where there is one."""

    text: str
    label: str = ""


@dataclass(slots=True)
class CleanRows(Generic[Example]):
    """The examples of one location, and how many rows there were before."""

    rows: list[Example] = field(default_factory=list)
    read: int = 0
    bad: int = 0


def clean_text(text: str, normalize: Normalize) -> str:
    """One text. Cleaning twice is the same as cleaning once."""
    if normalize == "None":
        return text
    text = _CONTROL.sub("", _LINE_ENDS.sub("\n", text))
    text = unicodedata.normalize(normalize, text)
    text = _AROUND_NEWLINE.sub("\n", _BLANKS.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text).strip()


def clean_rows(
    raw: Iterable[RawRow | BadRow],
    example: Callable[[RawRow], Example | BadRow],
    prepare: Prepare,
    *,
    source: str,
    uri: str,
    fields: Mapping[str, str],
    beat: Beat,
) -> CleanRows[Example]:
    """Make examples of all rows of a location. `source` is its name in the spec (data, data.validation, data.test).

    `fields` are those that rows need, each with the setting that names it. Raises DataError where one of them is in
    no row at all (FieldNotFound), where more rows are bad than prepare.maxBadRowsPercent allows, or where there are
    none (DataInvalid).
    """
    result = CleanRows[Example]()
    seen: dict[str, None] = {}  # field names, in order
    first_bad: BadRow | None = None
    for row in raw:
        result.read += 1
        if result.read % BEAT_EVERY_ROWS == 0:
            beat()
        if isinstance(row, RawRow) and len(seen) < 100:
            seen.update(dict.fromkeys(row.fields))
        made = row if isinstance(row, BadRow) else example(row)
        if isinstance(made, BadRow):
            result.bad += 1
            first_bad = first_bad or made
        else:
            result.rows.append(made)
    if result.read == 0:
        raise DataError(Reason.DATA_INVALID, f"{source}: {uri} has no rows")
    for name, setting in fields.items():
        if seen and name not in seen:
            raise DataError(
                Reason.FIELD_NOT_FOUND,
                f"{source}: no row of {uri} has the field {name!r}; the rows have {', '.join(map(repr, seen))[:500]}. "
                f"Set {setting}",
            )
    if first_bad is not None and result.bad * 100 > prepare.max_bad_rows_percent * result.read:
        raise DataError(
            Reason.DATA_INVALID,
            f"{source}: {result.bad} of {result.read} rows of {uri} cannot be used, more than "
            f"data.prepare.maxBadRowsPercent ({prepare.max_bad_rows_percent}) allows. The first: {first_bad.place}: "
            f"{first_bad.why}. Mend the rows, or raise data.prepare.maxBadRowsPercent",
        )
    return result


def text_of(row: RawRow, name: str, *, allow_numbers: bool) -> str | BadRow:
    """A field as text: a string, or with `allow_numbers` a whole number or a truth value too."""
    if name not in row.fields:
        return BadRow(row.place, f"field {name!r} is missing")
    value = row.fields[name]
    if allow_numbers and isinstance(value, bool):
        return str(value).lower()
    if allow_numbers and isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        wanted = "a text or a whole number" if allow_numbers else "a text"
        return BadRow(row.place, f"field {name!r} holds {kind_of(value)}, not {wanted}")
    if _SURROGATE.search(value):
        return BadRow(row.place, f"field {name!r} is not valid Unicode")
    return value

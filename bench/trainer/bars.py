"""What every part of the trainer's bench takes and gives: a Bench in, a list of Bar out.

A part is a module `bench/trainer/PART.py` with `def run(bench: Bench) -> list[Bar]`; it prints its tables, puts what
else is worth keeping into `bench.figures` (numbers, strings, lists and mappings of them: they end in the JSON line),
and lets exceptions through: a part that breaks holds nothing, and the others still run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.engine.bars import Bar

__all__ = ["Bar", "Bench", "table"]


@dataclass(frozen=True, slots=True)
class Bench:
    """What a part may use.

    `work` is a directory of its own that stays until the commit changes; `rows` are the rows that ROWS names (empty:
    all), for parts that measure several things and take long; `long` asks for the full size of what is sampled.
    """

    work: Path
    long: bool = False
    rows: tuple[str, ...] = ()
    figures: dict[str, object] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)  # rows that the part has asked for, so that others can be refused

    def wants(self, row: str) -> bool:
        """Whether a row is to be measured."""
        self.known.add(row)
        return not self.rows or row in self.rows


def table(title: str, heads: tuple[str, ...], lines: Sequence[tuple[object, ...]]) -> str:
    """Lines under heads, the first column to the left and the others to the right; numbers with three digits."""
    cells = [[_cell(item) for item in line] for line in (heads, *lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    texts = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    ]
    return "\n".join(("", title, *texts))


def _cell(item: object) -> str:
    if item is None:
        return "-"
    if isinstance(item, float):
        return f"{item:.0f}" if abs(item) >= 1000 else f"{item:.3g}"
    return str(item)

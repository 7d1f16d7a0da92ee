"""What issue 4 asks for, as figures: must and reach, the figure found, and whether it holds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of the verdict. `figure` None: could not be measured, which does not hold."""

    name: str
    must: float | None  # None: there is only a reach
    reach: float
    figure: float | None
    higher: bool = True  # whether more is better
    why: str = ""  # what the figure is, or why there is none

    @property
    def holds(self) -> bool:
        """Of the must."""
        if self.must is None:
            return True
        return self.figure is not None and (self.figure >= self.must if self.higher else self.figure <= self.must)

    @property
    def reached(self) -> bool:
        """Of the reach."""
        return self.figure is not None and (self.figure >= self.reach if self.higher else self.figure <= self.reach)

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "holds": self.holds, "reached": self.reached}

    def line(self) -> str:
        """For people."""
        sign = "≥" if self.higher else "≤"
        found = "not measured" if self.figure is None else f"{self.figure:.3g}"
        verdict = "reach" if self.reached else "-" if self.must is None else "holds" if self.holds else "MISSED"
        asked = (
            f"reach {sign} {self.reach:g}" if self.must is None else f"must {sign} {self.must:g}, reach {self.reach:g}"
        )
        return f"{verdict:<7} {self.name:<62} {found:>12}  {asked}  {self.why}"


Rows = Mapping[str, Mapping[str, object]]


def value(rows: Rows, name: str, key: str) -> float | None:
    """A figure of a row, if both are there."""
    found = rows.get(name, {}).get(key)
    return float(found) if isinstance(found, int | float) else None


def best(rows: Rows, names: list[str], key: str) -> tuple[str, float] | None:
    """(name, figure) of the largest."""
    found = [(name, figure) for name in names if (figure := value(rows, name, key)) is not None]
    return max(found, key=lambda item: item[1]) if found else None


def ratio_bar(
    name: str,
    must: float | None,
    reach: float,
    rows: Rows,
    ours: list[str],
    theirs: list[str],
    key: str = "tokensPerSecond",
) -> Bar:
    """Our best of some rows divided by the best of theirs; for times (key "firstTokenMs") the other way round."""
    times = key.endswith("Ms")
    pick = _least if times else best
    mine, other = pick(rows, ours, key), pick(rows, theirs, key)
    if mine is None or other is None:
        missing = ours if mine is None else theirs
        return Bar(name, must, reach, None, why=f"no figure for {' or '.join(missing)}")
    figure = other[1] / mine[1] if times else mine[1] / other[1]
    return Bar(name, must, reach, round(figure, 3), why=f"{mine[0]} {mine[1]:g} : {other[0]} {other[1]:g}")


def _least(rows: Rows, names: list[str], key: str) -> tuple[str, float] | None:
    found = [(name, figure) for name in names if (figure := value(rows, name, key)) is not None]
    return min(found, key=lambda item: item[1]) if found else None

"""Curves of a run: a PNG by matplotlib, where it is installed, and one HTML file with SVG that we draw ourselves.

    write_curves(history, Path("models/spam"))

`History` gathers what the reporter says while a run goes on; nothing here touches training.
"""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kubeformer.contract.progress import Progress

WIDTH, HEIGHT, MARGIN = 640, 280, 48
_COLOURS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea", "#ea580c", "#0891b2")
_ACROSS = ("train", "validation", "test")  # drawn into one chart where the measure is the same

Point = tuple[float, float]


@dataclass(slots=True)
class History:
    """Every metric's values by step, as they were heard; not-a-numbers are left out."""

    values: dict[str, dict[int, float]] = field(default_factory=dict)

    def hear(self, progress: Progress) -> None:
        """Adds what a progress holds that is new."""
        for name, value in progress.metrics.items():
            known = self.values.setdefault(name, {})
            last = next(reversed(known.values()), None)
            # An evaluation's figures are repeated at every step after it: only their first mention is a point.
            if math.isfinite(value) and (value != last or name.startswith("train/")):
                known[progress.step] = value

    def charts(self) -> dict[str, dict[str, list[Point]]]:
        """By measure ("loss"), the curves by where they were measured ("train", "validation")."""
        found: dict[str, dict[str, list[Point]]] = {}
        for name, known in sorted(self.values.items()):
            split, _, measure = name.partition("/")
            if split in _ACROSS and measure and len(known) > 0:
                found.setdefault(measure, {})[split] = [(float(step), value) for step, value in sorted(known.items())]
        return {measure: curves for measure, curves in found.items() if any(len(c) > 1 for c in curves.values())}


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two bounds: steps of 1, 2 or 5 times a power of ten, at most `most` + 1 of them."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def svg(title: str, curves: Mapping[str, Sequence[Point]]) -> str:
    """One chart as an SVG element: axes with round numbers, a line a curve, a legend."""
    points = [point for curve in curves.values() for point in curve]
    (left, right), (low, high) = _bounds(x for x, _ in points), _bounds(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        across = MARGIN + (x - left) / (right - left) * (WIDTH - 2 * MARGIN)
        return across, HEIGHT - MARGIN - (y - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><text x="{MARGIN}" y="20">{html.escape(title)}</text>']
    for y in ticks(low, high):
        _, height = place(left, y)
        parts.append(f'<path class="grid" d="M{MARGIN} {height:.1f}H{WIDTH - MARGIN}"/>')
        parts.append(f'<text class="tick" x="{MARGIN - 6}" y="{height + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for x in ticks(left, right):
        across, _ = place(x, low)
        parts.append(
            f'<text class="tick" x="{across:.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{x:.4g}</text>'
        )
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = "L".join("{:.1f} {:.1f}".format(*place(*point)) for point in curve)
        parts.append(f'<path class="curve" stroke="{colour}" d="M{line}"/>')
        if len(curve) == 1:
            across, height = place(*curve[0])
            parts.append(f'<circle cx="{across:.1f}" cy="{height:.1f}" r="3" fill="{colour}"/>')
        legend = f'x="{WIDTH - MARGIN}" y="{20 + 16 * number}" text-anchor="end" fill="{colour}"'
        parts.append(f"<text {legend}>{html.escape(name)} {curve[-1][1]:.4g}</text>")
    return "".join([*parts, "</svg>"])


def _bounds(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    low, high = min(found), max(found)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


_STYLE = """body{font:14px system-ui,sans-serif;max-width:720px;margin:2em auto;color:#111;background:#fff}
svg{width:100%;margin:1em 0}svg text{font-size:13px}.tick{fill:#555;font-size:11px}.grid{stroke:#ddd}
.curve{fill:none;stroke-width:1.6}td,th{text-align:left;padding:.1em 1em .1em 0}"""


def page(name: str, history: History, facts: Mapping[str, object]) -> str:
    """The whole HTML page; it loads nothing from anywhere."""
    charts = "".join(svg(f"{measure} by step", curves) for measure, curves in history.charts().items())
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    title = html.escape(name)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><table>{rows}</table>{charts}</html>\n"
    )


def png(history: History, path: Path) -> bool:
    """The charts, one below the other, as a PNG; False where matplotlib is not installed."""
    charts = history.charts()
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 3.2 * max(1, len(charts))), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (measure, curves) in enumerate(charts.items()):
        axes = figure.add_subplot(len(charts), 1, number + 1)
        for name, curve in curves.items():
            axes.plot(*zip(*curve, strict=True), label=name, marker="o" if len(curve) == 1 else None)
        axes.set(title=measure, xlabel="step")
        axes.legend()
    figure.savefig(path, dpi=120)
    return True


def write_curves(name: str, history: History, directory: Path, facts: Mapping[str, object]) -> list[Path]:
    """curves.html, history.json, and curves.png where matplotlib is there; the paths of what was written."""
    written = [directory / "curves.html", directory / "history.json"]
    written[0].write_text(page(name, history, facts), "utf-8")
    written[1].write_text(json.dumps(history.values, indent=1), "utf-8")
    if png(history, picture := directory / "curves.png"):
        written.append(picture)
    return written

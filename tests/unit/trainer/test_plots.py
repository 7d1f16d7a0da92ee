"""Curves: what is remembered of a run, and what is drawn of it. Pure; nothing here imports matplotlib or torch."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from kubeformer.contract.progress import Progress
from kubeformer_runtime.trainer.bar import Bar, line
from kubeformer_runtime.trainer.plots import History, page, svg, ticks

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(NUMBERS, st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 6
    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in found)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_a_chart_is_well_formed_whatever_the_points_are(points: list[tuple[float, float]]) -> None:
    ElementTree.fromstring(svg("loss & <more>", {"train": points, "validation": points[:1]}))


def said(step: int, **metrics: float) -> Progress:
    return Progress(
        phase="Training", step=step, total_steps=40, metrics={k.replace("_", "/"): v for k, v in metrics.items()}
    )


def test_an_evaluation_is_one_point_however_often_its_figure_is_repeated() -> None:
    history = History()
    for step, value in ((10, 0.9), (11, 0.9), (12, 0.9), (20, 0.8)):
        history.hear(said(step, train_loss=1 / step, validation_loss=value))
    history.hear(said(21, train_loss=float("nan")))
    curves = history.charts()["loss"]
    assert curves["validation"] == [(10.0, 0.9), (20.0, 0.8)]
    assert [step for step, _ in curves["train"]] == [10.0, 11.0, 12.0, 20.0]


def test_the_page_stands_alone() -> None:
    history = History()
    for step in (1, 2):
        history.hear(said(step, train_loss=1 / step))
    text = page("a <b>", history, {"steps": 2})
    assert "a &lt;b&gt;" in text
    assert "<svg" in text
    assert "http" not in text
    assert "src=" not in text


def test_the_bar_says_how_far_training_is_and_how_long_it_will_take() -> None:
    text = line(said(10, train_loss=0.5), seconds=30.0)
    assert text.startswith("[======                  ]  10/40  loss 0.5")
    assert text.endswith("0:01:30 left")
    assert line(Progress(phase="Preparing"), 0.0) == "preparing"


class Stream:
    """A stand-in for standard error."""

    def __init__(self, terminal: bool) -> None:
        self.text, self._terminal = "", terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_where_there_is_no_terminal_the_bar_is_ten_lines_and_no_control_character() -> None:
    stream = Stream(terminal=False)
    bar = Bar(stream, clock=iter(range(1000)).__next__)  # type: ignore[arg-type]
    for step in range(41):
        bar.show(said(step))
    bar.close()
    assert stream.text.count("\n") == 11
    assert "\r" not in stream.text


def test_on_a_terminal_the_line_is_written_over() -> None:
    stream = Stream(terminal=True)
    bar = Bar(stream, clock=lambda: 0.0)  # type: ignore[arg-type]
    bar.show(said(1))
    bar.say("above")
    bar.show(said(2))
    bar.close()
    assert "\r" in stream.text
    assert "above\n[" in stream.text

"""The part floors runs those that ROWS names, and a floor that breaks holds nothing but stops no other."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.trainer import floors
from bench.trainer.bars import Bar, Bench
from bench.trainer.baselines import thinned


def good(bench: Bench) -> list[Bar]:
    bench.figures["score"] = 2.0
    return [Bar("good", 1.0, 1.0, 2.0)]


def broken(bench: Bench) -> list[Bar]:
    raise SystemExit("the trainer ended with 78")


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: dict[str, Callable[[Bench], list[Bar]]] = {"broken": broken, "good": good}
    monkeypatch.setattr(floors, "names", lambda: tuple(runs))
    for name, run in runs.items():
        monkeypatch.setitem(sys.modules, f"bench.trainer.floor_{name}", SimpleNamespace(__doc__="What it is.", run=run))


@pytest.mark.usefixtures("two")
def test_a_floor_that_breaks_does_not_hold_and_the_others_still_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, second = floors.run(bench)
    assert (first.holds, first.why) == (False, "SystemExit: the trainer ended with 78")
    assert second.holds
    assert bench.figures == {"broken": {}, "good": {"score": 2.0}}


@pytest.mark.usefixtures("two")
def test_rows_choose_floors_and_the_part_knows_which_there_are(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows=("good", "nonsense"))
    assert [bar.name for bar in floors.run(bench)] == ["good"]
    assert set(bench.rows) - bench.known == {"nonsense"}


def test_every_task_of_the_floors_has_one() -> None:
    assert set(floors.names()) >= {"chat", "language_model", "sentiment", "summarisation", "translation"}


def test_rows_are_thinned_evenly_for_a_corpus_may_be_sorted() -> None:
    rows = [{"text": str(number)} for number in range(10)]
    assert [row["text"] for row in thinned(rows, 3)] == ["0", "3", "6"]
    assert thinned(rows, None) == thinned(rows, 99) == rows

"""What dies is started again; what was stopped is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster.components import REPOSITORY, Command
from localcluster.layout import Layout
from localcluster.processes import Processes, end_all, processes_of
from localcluster.supervisor import LONGEST_PAUSE, pause_after
from tests.unit.localcluster.builders import until


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = processes_of(Layout(tmp_path))
    arguments = tuple(map(str, (found.cluster, found.records, found.logs)))
    command = Command((sys.executable, "-m", "localcluster.supervisor", *arguments), {}, str(REPOSITORY))
    found.start("supervisor", command)
    yield found
    found.stop("supervisor", 5)
    end_all(found.marked(), 0.5)


def test_a_killed_process_comes_back_and_a_stopped_one_does_not(processes: Processes) -> None:
    first = processes.start("a", Command(("sleep", "1000")))
    processes.start("b", Command(("sleep", "1000")))
    processes.stop("b", 5)
    processes.kill("a")
    assert until(lambda: (record := processes.alive("a")) is not None and record.pid != first.pid)
    assert processes.alive("b") is None


def test_pauses_between_quick_deaths_grow_to_a_bound() -> None:
    pauses = [pause_after(deaths) for deaths in range(1, 12)]
    assert pauses[0] == 0, "a single death is mended at once"
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE

"""Processes are started once, known for certain, and ended without ever touching a stranger."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcluster import processes as module
from localcluster.components import Command
from localcluster.layout import Layout
from localcluster.processes import (
    CLUSTER_MARK,
    Processes,
    end_all,
    other_clusters,
    parse_start_time,
    same_program,
    signal_process,
    start_time,
)
from tests.unit.localcluster.builders import until

SLEEP = Command(("sleep", "1000"))


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = module.processes_of(Layout(tmp_path))
    yield found
    end_all(found.marked(), 0.5)


def test_starting_twice_leaves_the_first_process_alone(processes: Processes) -> None:
    first = processes.start("a", SLEEP)
    assert processes.start("a", SLEEP) == first
    assert processes.alive("a") == first


def test_another_command_replaces_the_process(processes: Processes) -> None:
    first = processes.start("a", SLEEP)
    second = processes.start("a", Command(("sleep", "1001")))
    assert start_time(first.pid) != first.start
    assert processes.alive("a") == second


def test_another_environment_replaces_the_process(processes: Processes) -> None:
    first = processes.start("a", SLEEP)
    second = processes.start("a", Command(SLEEP.argv, {"KEYS": "new"}))
    assert second.pid != first.pid


def test_a_process_outlives_who_started_it_and_has_a_session_of_its_own(tmp_path: Path, processes: Processes) -> None:
    code = (
        "import sys; from pathlib import Path; from localcluster.processes import Processes; "
        "from localcluster.components import Command; a, b, c = map(Path, sys.argv[1:]); "
        "print(Processes(a, b, c).start('a', Command(('sleep', '1000'))).pid)"
    )
    folders = (str(processes.cluster), str(processes.records), str(processes.logs))
    done = subprocess.run(
        [sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True, timeout=60
    )
    record = processes.alive("a")
    assert record is not None
    assert record.pid == int(done.stdout)
    assert os.getsid(record.pid) == record.pid


def test_a_killed_process_is_revived_from_its_record_alone(processes: Processes) -> None:
    first = processes.start("a", SLEEP)
    assert processes.kill("a")
    assert until(lambda: processes.alive("a") is None)
    second = processes.revive("a")
    assert second is not None
    assert second.argv == first.argv
    assert processes.alive("a") == second


def test_a_stopped_process_stays_down(processes: Processes) -> None:
    processes.start("a", SLEEP)
    processes.stop("a", 5)
    assert processes.alive("a") is None
    assert processes.revive("a") is None


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(processes: Processes) -> None:
    record = processes.start("a", Command(("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")))
    assert until(lambda: "ready" in Path(record.log).read_text().splitlines())
    processes.stop("a", 0.1)
    assert start_time(record.pid) != record.start


def test_a_stranger_with_a_recorded_pid_is_not_ours_and_survives_a_stop(processes: Processes) -> None:
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            record = processes.start("a", SLEEP)
            # As if the number had been given away meanwhile; both may have started in the same hundredth.
            stolen = dataclasses.replace(record, pid=stranger.pid, start=record.start - 1000)
            (processes.records / "a.json").write_text(json.dumps(dataclasses.asdict(stolen)))
            assert processes.alive("a") is None
            processes.stop("a", 1)
            assert not processes.kill("a")
            assert stranger.poll() is None
            end_all([(record.pid, record.start)], 1)
        finally:
            stranger.kill()


def test_a_record_of_an_earlier_boot_is_of_nobody(processes: Processes) -> None:
    record = processes.start("a", SLEEP)
    earlier = dataclasses.replace(record, boot="00000000-0000-0000-0000-000000000000")
    (processes.records / "a.json").write_text(json.dumps(dataclasses.asdict(earlier)))
    assert processes.alive("a") is None


def test_a_process_whose_record_was_never_written_is_found_and_replaced(processes: Processes) -> None:
    # As after a kill -9 between the start of a process and the writing of its record.
    orphan = processes.start("a", SLEEP)
    (processes.records / "a.json").unlink()
    assert (orphan.pid, orphan.start) in processes.marked()
    record = processes.start("a", SLEEP)
    assert record.pid != orphan.pid
    assert start_time(orphan.pid) != orphan.start


def test_a_damaged_record_counts_as_none(processes: Processes) -> None:
    processes.records.mkdir(parents=True)
    (processes.records / "a.json").write_text('{"name": "a", "pid"')
    assert processes.record("a") is None
    assert processes.start("a", SLEEP).name == "a"


def test_processes_of_another_cluster_are_not_marked_as_ours(processes: Processes, tmp_path: Path) -> None:
    environment = {**os.environ, CLUSTER_MARK: str(tmp_path / "other")}
    with subprocess.Popen(["sleep", "1000"], env=environment) as other:
        try:
            assert other.pid not in {pid for pid, _ in processes.marked()}
        finally:
            other.kill()


def test_another_cluster_is_seen_by_its_agents_alone(tmp_path: Path) -> None:
    program = tmp_path / "kubelet"
    shutil.copy2(shutil.which("sleep") or "/bin/sleep", program)
    other, mine = tmp_path / "other", tmp_path / "mine"
    environment = {**os.environ, CLUSTER_MARK: str(other)}
    with (
        subprocess.Popen([str(program), "1000"], env=environment) as agent,
        subprocess.Popen(["sleep", "1000"], env={**environment, CLUSTER_MARK: str(tmp_path / "third")}) as bystander,
    ):
        try:
            assert until(lambda: str(other) in other_clusters(mine))
            assert str(tmp_path / "third") not in other_clusters(mine)
            assert str(other) not in other_clusters(other)
        finally:
            agent.kill()
            bystander.kill()


def test_a_signal_for_another_start_time_is_not_sent() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            start = start_time(process.pid)
            assert start is not None
            assert not signal_process(process.pid, start + 1, signal.SIGKILL)
            assert process.poll() is None
            assert signal_process(process.pid, start, signal.SIGKILL)
        finally:
            process.kill()


def test_a_zombie_does_not_run() -> None:
    with subprocess.Popen(["true"]) as process:
        assert until(lambda: start_time(process.pid) is None)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=15), st.integers(0, 2**63))
def test_the_start_time_is_read_whatever_the_process_is_called(name: str, start: int) -> None:
    rest = " ".join(["S", *(str(number) for number in range(18)), str(start), "0", "0"])
    assert parse_start_time(f"17 ({name}) {rest}") == start


def test_which_python_runs_our_modules_makes_no_difference() -> None:
    assert same_program(("/usr/bin/python3", "-m", "x"), ("/venv/bin/python", "-m", "x"))
    assert not same_program(("/usr/bin/python3", "-m", "x"), ("/usr/bin/python3", "-m", "y"))
    assert not same_program(("/a/etcd", "x"), ("/b/etcd", "x"))
    assert not same_program((), ("/b/etcd", "x"))

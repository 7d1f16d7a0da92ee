"""What a container may use is read from its cgroup, version 1 or 2."""

import os
from pathlib import Path

import pytest

from kubeformer_runtime.trainer.machine import cpus, interface_towards, memory_bytes, threads

PRESENT = len(os.sched_getaffinity(0))


def write(root: Path, name: str, content: str) -> None:
    """One cgroup file."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content + "\n")


def test_half_a_cpu_of_version_2(tmp_path: Path) -> None:
    write(tmp_path, "cpu.max", "50000 100000")
    assert cpus(tmp_path) == 0.5
    assert threads(1, tmp_path) == 1


def test_one_cpu_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, "cpu/cpu.cfs_quota_us", "100000")
    write(tmp_path, "cpu/cpu.cfs_period_us", "100000")
    assert cpus(tmp_path) == 1.0


@pytest.mark.parametrize(
    "files",
    [{}, {"cpu.max": "max 100000"}, {"cpu/cpu.cfs_quota_us": "-1"}, {"cpu.max": "99900000 100000"}],
    ids=["no cgroup", "version 2 without limit", "version 1 without limit", "a limit above what is there"],
)
def test_without_a_limit_all_cpus_that_are_there(tmp_path: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        write(tmp_path, name, content)
    assert cpus(tmp_path) == PRESENT


def test_ranks_share_the_cpus_but_none_goes_without(tmp_path: Path) -> None:
    assert threads(PRESENT, tmp_path) == 1
    assert threads(100 * PRESENT, tmp_path) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "1048576"}, 1048576),
        ({"memory/memory.limit_in_bytes": "2097152"}, 2097152),
        ({"memory.max": "max"}, 4096 * 1024),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 4096 * 1024),
        ({}, 4096 * 1024),
    ],
)
def test_memory_is_the_limit_or_what_is_there(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    write(tmp_path, "meminfo", "MemTotal:           4096 kB\nMemFree:            1000 kB")
    for name, content in files.items():
        write(tmp_path, name, content)
    assert memory_bytes(tmp_path, tmp_path / "meminfo") == expected


def test_the_way_to_this_machine_is_loopback_and_the_way_to_nowhere_unknown() -> None:
    assert interface_towards("127.0.0.1", 29400) == "lo"
    assert interface_towards("no-such-host.invalid", 29400) is None

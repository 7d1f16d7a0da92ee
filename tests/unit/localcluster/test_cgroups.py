"""Control groups of versions 1 and 2, on folders that behave like them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from localcluster import cgroups
from localcluster.cgroups import Hierarchy, children_first, parse_mounts, processes, remove

VERSION_1 = """\
tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,xattr,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
"""
VERSION_2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime,nsdelegate,memory_recursiveprot 0 0\n"


def test_both_versions_are_read_from_the_mounts() -> None:
    found = {tree.path.name: tree for tree in parse_mounts(VERSION_1)}
    assert found["cpu,cpuacct"].controllers == ("cpu", "cpuacct")
    assert found["cpuset"].controllers == ("cpuset",)
    assert found["systemd"].controllers == ("name=systemd",)
    assert found["unified"] == Hierarchy(Path("/sys/fs/cgroup/unified"), 2, ())
    assert parse_mounts(VERSION_2) == (Hierarchy(Path("/sys/fs/cgroup"), 2, ()),)


def test_a_hierarchy_mounted_elsewhere_for_a_container_is_not_ours() -> None:
    assert parse_mounts("cgroup /var/lib/x/sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n") == ()


def test_a_group_is_made_in_every_hierarchy_and_its_cpuset_is_filled(tmp_path: Path) -> None:
    trees = (Hierarchy(tmp_path / "cpu", 1, ("cpu",)), Hierarchy(tmp_path / "cpuset", 1, ("cpuset",)))
    for tree in trees:
        (tree.path / "node").mkdir(parents=True)
    for name, value in (("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n")):
        (tmp_path / "cpuset" / name).write_text(value)
        (tmp_path / "cpuset" / "node" / name).write_text("\n")  # as the kernel makes it
    cgroups.make("/node", trees)
    assert (tmp_path / "cpuset" / "node" / "cpuset.cpus").read_text() == "0-1"
    assert (tmp_path / "cpuset" / "node" / "cpuset.mems").read_text() == "0"


def test_version_2_hands_the_controllers_down_to_the_group(tmp_path: Path) -> None:
    tree = Hierarchy(tmp_path, 2, ())
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids rdma\n")
    cgroups.make("/node", (tree,))
    assert (tmp_path / "node").is_dir()
    # A plain file keeps the last write only; on the kernel's each adds one.
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"


def test_children_come_before_their_parents(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "d").mkdir()
    order = list(children_first(tmp_path / "a"))
    assert order[-1] == tmp_path / "a"
    assert order.index(tmp_path / "a" / "b" / "c") < order.index(tmp_path / "a" / "b")


def test_processes_of_all_groups_below_are_found(tmp_path: Path) -> None:
    tree = Hierarchy(tmp_path, 1, ("cpu",))
    (tmp_path / "node" / "pod").mkdir(parents=True)
    (tmp_path / "node" / "cgroup.procs").write_text("")
    (tmp_path / "node" / "pod" / "cgroup.procs").write_text("17\n23\n")
    assert processes("/node", (tree,)) == {17, 23}


def test_removing_what_is_not_there_is_harmless(tmp_path: Path) -> None:
    assert remove("/node", (Hierarchy(tmp_path, 2, ()),)) == []


def test_a_group_that_vanishes_between_listing_and_removing_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node" / "pod").mkdir(parents=True)
    real = Path.rmdir

    def somebody_was_faster(path: Path) -> None:
        if path.name == "pod":
            real(path)
        real(path)

    monkeypatch.setattr(Path, "rmdir", somebody_was_faster)
    assert remove("/node", (Hierarchy(tmp_path, 1, ("cpu",)),)) == []
    assert not (tmp_path / "node").exists()


def test_a_group_that_vanishes_while_it_is_listed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node" / "pod" / "container").mkdir(parents=True)
    real = os.scandir

    def gone(path: Path) -> object:
        if Path(path).name == "pod":
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(cgroups.os, "scandir", gone)
    assert list(children_first(tmp_path / "node")) == [tmp_path / "node"]


def test_a_group_that_stays_busy_is_named_when_time_is_up(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "busy").write_text("")  # a folder with a file cannot be removed, as a group with a process
    assert remove("/node", (Hierarchy(tmp_path, 1, ("cpu",)),), seconds=0.1) == [tmp_path / "node"]

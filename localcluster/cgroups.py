"""The nodes' control groups: made before a kubelet starts, emptied and removed by `down`. Versions 1 and 2.

In version 1 each controller has a hierarchy of its own, mounted side by side; in version 2 there is one. A machine can
have both (controllers in version 1, an empty version 2 hierarchy beside them); then the node's group is made in every
one. Processes in a group go and sub-groups vanish at any time, also between listing and reading: nothing here minds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localcluster.errors import ClusterError

CONTROLLERS_V2 = ("cpu", "cpuset", "memory", "pids", "io", "hugetlb")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted cgroup hierarchy.

    Attributes:
        path: where it is mounted.
        version: 1 or 2.
        controllers: of version 1; empty for version 2.
    """

    path: Path
    version: int
    controllers: tuple[str, ...]


_NOT_CONTROLLERS = frozenset(
    {
        "rw",
        "ro",
        "relatime",
        "noatime",
        "nosuid",
        "nodev",
        "noexec",
        "xattr",
        "clone_children",
        "noprefix",
        "release_agent",
    }
)


def parse_mounts(mounts: str) -> tuple[Hierarchy, ...]:
    """The hierarchies in the text of /proc/self/mounts, each once."""
    found: dict[Path, Hierarchy] = {}
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[2] not in ("cgroup", "cgroup2"):
            continue
        path = Path(fields[1].replace("\\040", " "))
        if not path.is_relative_to("/sys/fs/cgroup"):
            continue
        version = 1 if fields[2] == "cgroup" else 2
        controllers = tuple(
            option
            for option in fields[3].split(",")
            if option not in _NOT_CONTROLLERS and not option.startswith("seclabel")
        )
        found[path] = Hierarchy(path, version, controllers if version == 1 else ())
    return tuple(found.values())


def hierarchies() -> tuple[Hierarchy, ...]:
    """The hierarchies of this machine.

    Raises:
        ClusterError: if there is none.
    """
    found = parse_mounts(Path("/proc/self/mounts").read_text())
    if not found:
        raise ClusterError("No cgroup hierarchy is mounted below /sys/fs/cgroup; kubelets cannot run here.")
    return found


def make(group: str, trees: tuple[Hierarchy, ...]) -> None:
    """Makes a group in every hierarchy, with everything a kubelet needs below it."""
    for tree in trees:
        folder = tree.path / group.lstrip("/")
        if tree.version == 2:
            enable_controllers(tree.path)
        folder.mkdir(exist_ok=True)
        if tree.version == 2:
            enable_controllers(folder)
        if "cpuset" in tree.controllers:
            # A new cpuset is empty, and nothing can run in it.
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not (folder / name).read_text().strip():
                    (folder / name).write_text((tree.path / name).read_text().strip())


def enable_controllers(folder: Path) -> None:
    """Version 2: lets the children of a group have the controllers that the group has."""
    with contextlib.suppress(OSError):
        available = (folder / "cgroup.controllers").read_text().split()
        for controller in (name for name in available if name in CONTROLLERS_V2):
            with contextlib.suppress(OSError):
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def children_first(folder: Path) -> Iterator[Path]:
    """A group and all below it, children before their parents; those that vanish meanwhile are passed over."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in names:
        yield from children_first(folder / name)
    yield folder


def processes(group: str, trees: tuple[Hierarchy, ...]) -> set[int]:
    """The processes in a group or below it, in any hierarchy."""
    found: set[int] = set()
    for tree in trees:
        for folder in children_first(tree.path / group.lstrip("/")):
            with contextlib.suppress(OSError, ValueError):
                found.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
    return found


def thaw(group: str, trees: tuple[Hierarchy, ...]) -> None:
    """Lets frozen processes go on, so that signals reach them."""
    for tree in trees:
        if tree.version == 1 and "freezer" not in tree.controllers:
            continue
        name, value = ("cgroup.freeze", "0") if tree.version == 2 else ("freezer.state", "THAWED")
        for folder in children_first(tree.path / group.lstrip("/")):
            with contextlib.suppress(OSError):
                (folder / name).write_text(value)


def remove(group: str, trees: tuple[Hierarchy, ...], seconds: float = 10.0) -> list[Path]:
    """Removes a group and all below it in every hierarchy. Returns what was still busy when time was up."""
    deadline = time.monotonic() + seconds
    while True:
        left: list[Path] = []
        for tree in trees:
            for folder in children_first(tree.path / group.lstrip("/")):
                try:
                    folder.rmdir()
                except OSError as error:
                    if error.errno != errno.ENOENT:
                        left.append(folder)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)

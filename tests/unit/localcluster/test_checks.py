"""What stops `up`, and the sentence that it then says."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from localcluster import checks
from localcluster.errors import ClusterError
from localcluster.processes import processes_of
from tests.unit.localcluster.builders import cluster_in


@pytest.fixture
def held() -> Iterator[int]:
    """A port of loopback that this process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_is_named_with_who_holds_it_and_who_needs_it(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = cluster_in(tmp_path)
    monkeypatch.setattr(checks, "ports", lambda cluster: (("etcd", held, "127.0.0.1"),))
    with pytest.raises(ClusterError, match=rf"Port {held}, which etcd needs, is taken by process {os.getpid()} \("):
        checks.require_ports(cluster, processes_of(cluster.layout))


def test_a_free_port_and_an_address_that_is_not_there_yet_are_fine(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    monkeypatch.setattr(checks, "ports", lambda cluster: (("a", free, "127.0.0.1"), ("b", held, "203.0.113.7")))
    cluster = cluster_in(tmp_path)
    checks.require_ports(cluster, processes_of(cluster.layout))


def test_a_port_held_at_all_addresses_is_taken_for_every_one() -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        assert checks.taken(listener.getsockname()[1], "203.0.113.7")


def test_every_port_belongs_to_one_component_and_address(tmp_path: Path) -> None:
    taken = [(port, address) for _, port, address in checks.ports(cluster_in(tmp_path))]
    assert len(taken) == len(set(taken))


def test_a_full_disk_is_named_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * checks.GIB))
    with pytest.raises(ClusterError, match=r"2\.0 GB free and 20 GB are needed.*KUBEFORMER_CACHE"):
        checks.require_disk(cluster_in(tmp_path / "not" / "there"))


def test_without_root_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"needs root.*sudo"):
        checks.require_root()

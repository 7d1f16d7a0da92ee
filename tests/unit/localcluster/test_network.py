"""Kernel settings are put back, and rules cover every address that a pod can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcluster import network
from localcluster.errors import ClusterError
from localcluster.layout import Layout

LAYOUT = Layout(Path("/cache"))


def _settings(root: Path, value: str) -> None:
    for name in network.SYSCTLS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(value)


def test_kernel_settings_are_changed_and_put_back(tmp_path: Path) -> None:
    root, saved = tmp_path / "sys", tmp_path / "saved.json"
    _settings(root, "7\n")
    network.set_sysctls(saved, root)
    assert (root / "net/ipv4/ip_forward").read_text() == "1"
    network.restore_sysctls(saved, root)
    assert {(root / name).read_text().strip() for name in network.SYSCTLS} == {"7"}
    assert not saved.exists()


def test_what_was_there_before_the_first_up_is_what_the_last_down_puts_back(tmp_path: Path) -> None:
    root, saved = tmp_path / "sys", tmp_path / "saved.json"
    _settings(root, "0")
    network.set_sysctls(saved, root)
    network.set_sysctls(saved, root)  # `up` twice, or after a crash
    network.restore_sysctls(saved, root)
    assert (root / "net/ipv4/ip_forward").read_text() == "0"


def test_putting_back_without_a_memory_is_harmless(tmp_path: Path) -> None:
    network.restore_sysctls(tmp_path / "saved.json", tmp_path)


def test_forwarding_that_cannot_be_switched_on_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder" / "ip_forward").mkdir(parents=True)
    with pytest.raises(ClusterError, match=r"ip_forward cannot be set to 1 .*pods could not reach each other"):
        network._write_sysctl(tmp_path / "folder" / "ip_forward", "1")


def test_a_pod_of_either_node_reaches_itself_through_a_service() -> None:
    rules = network.masquerade_rules(LAYOUT.nodes)
    for pod in ("10.244.0.2", "10.244.0.254", "10.244.1.2", "10.244.1.254"):
        assert f"{pod} . {pod}" in rules


def test_routes_of_others_into_our_ranges_are_seen_and_ours_are_not() -> None:
    routes = [
        {"dst": "default", "dev": "eth0"},
        {"dst": "10.244.0.0/16", "dev": LAYOUT.nodes[0].bridge},
        {"dst": "10.244.1.7", "dev": "veth123"},
        {"dst": "10.244.0.0/24", "dev": "cni0"},
    ]
    assert network.foreign_routes(LAYOUT, routes) == ["10.244.0.0/24 via cni0"]

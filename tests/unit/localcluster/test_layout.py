"""Where things are: the cache's place, the nodes' addresses, and paths short enough for Unix sockets."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from localcluster.errors import ClusterError
from localcluster.layout import LONGEST_CACHE_PATH, POD_RANGE, layout_from

HOME = Path("/home/somebody")


def test_the_cache_is_below_the_home_folder_unless_the_variable_says_otherwise() -> None:
    assert layout_from({}, HOME).cache == HOME / ".cache" / "kubeformer"
    assert layout_from({"KUBEFORMER_CACHE": "/var/tmp/k"}, HOME).cache == Path("/var/tmp/k")


def test_a_cache_path_that_is_too_long_is_refused_with_the_way_out() -> None:
    path = "/" + "x" * LONGEST_CACHE_PATH
    with pytest.raises(ClusterError, match=rf"has {LONGEST_CACHE_PATH + 1} characters.*set KUBEFORMER_CACHE"):
        layout_from({"KUBEFORMER_CACHE": path}, HOME)


def test_a_relative_cache_path_is_refused() -> None:
    with pytest.raises(ClusterError, match="relative"):
        layout_from({"KUBEFORMER_CACHE": "cache"}, HOME)


def test_all_sockets_fit_into_the_kernels_107_bytes_at_the_longest_cache_path() -> None:
    layout = layout_from({"KUBEFORMER_CACHE": "/" + "x" * (LONGEST_CACHE_PATH - 1)}, HOME)
    for node in layout.nodes:
        for socket in (
            Path(f"{node.containerd_socket}.ttrpc"),
            node.kubelet_root / "pod-resources" / "kubelet.sock",
            node.kubelet_root / "device-plugins" / "kubelet.sock",
        ):
            assert len(str(socket)) <= 107


def test_nodes_share_no_address_and_no_device() -> None:
    first, second = layout_from({}, HOME).nodes
    ranges = [ipaddress.ip_network(node.pod_range) for node in (first, second)]
    assert not ranges[0].overlaps(ranges[1])
    for node, own in zip((first, second), ranges, strict=True):
        assert ipaddress.ip_address(node.address) in own
        assert own.subnet_of(ipaddress.ip_network(POD_RANGE))  # type: ignore[arg-type]
        assert len(node.bridge) <= 15, "the kernel's limit for names of devices"
    assert first.bridge != second.bridge
    assert first.cgroup != second.cgroup

"""Images of one's own reach the nodes: an archive is loaded, and a pod runs from it."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

import pytest

from localcluster import oci
from localcluster.base_images import build_pause
from localcluster.binaries import architecture
from localcluster.components import Cluster
from localcluster.errors import ClusterError
from localcluster.registry import load_image, name_on_nodes
from tests.cluster.kubectl import Kubectl, python_pod


def test_a_pod_runs_from_an_archive_that_was_loaded(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> None:
    name = f"tests/waits:{secrets.token_hex(4)}"
    archive = tmp_path / "waits.tar"
    oci.archive(archive, name, {"waits": build_pause(cluster)}, ["/waits"], architecture())
    assert load_image(cluster, argparse.Namespace(archive=str(archive), name="")) == 0

    pod = python_pod("waits", name_on_nodes(name) if cluster.engine == "local" else name, "")
    pod["spec"]["containers"][0]["command"] = ["/waits"]
    kubectl.apply(pod)
    kubectl.wait_ready("waits")


def test_a_file_that_is_no_image_is_refused_with_the_way_to_make_one(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "notes.tar").write_text("not a tar")
    with pytest.raises(ClusterError, match=r"notes\.tar.*docker save"):
        load_image(cluster, argparse.Namespace(archive=str(tmp_path / "notes.tar"), name="a:1"))

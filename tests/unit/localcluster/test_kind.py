"""kind-config.yaml says what the cluster in containers needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from localcluster.components import REPOSITORY
from localcluster.errors import ClusterError
from localcluster.kind import config_text

TEMPLATE = (REPOSITORY / "kind-config.yaml").read_text()


def test_two_workers_share_one_folder_at_one_path() -> None:
    config = yaml.safe_load(config_text(TEMPLATE, Path("/cache/volumes")))
    workers = [node for node in config["nodes"] if node["role"] == "worker"]
    assert len(workers) == 2
    for worker in workers:
        assert worker["extraMounts"] == [{"hostPath": "/cache/volumes", "containerPath": "/cache/volumes"}]


def test_gang_scheduling_is_on_as_in_the_local_cluster() -> None:
    config = yaml.safe_load(TEMPLATE)
    assert config["featureGates"] == {"GenericWorkload": True}
    assert config["runtimeConfig"] == {"scheduling.k8s.io/v1beta1": "true"}


def test_a_file_without_the_shared_mount_is_refused() -> None:
    with pytest.raises(ClusterError, match="ReadWriteMany volumes need it"):
        config_text("nodes: []", Path("/cache/volumes"))

"""The cluster in containers, for machines with a container engine: `kind` makes it from `kind-config.yaml`.

`down` deletes it with its objects and images; the data of volumes stays until `down --purge`.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from localcluster import binaries
from localcluster.components import REPOSITORY, Cluster
from localcluster.engine import container_engine
from localcluster.errors import ClusterError

NAME = "kubeformer"
VOLUMES_IN_FILE = "/var/lib/kubeformer/volumes"


def config_text(template: str, volumes: Path) -> str:
    """kind-config.yaml with the volumes' folder of this cache.

    Raises:
        ClusterError: if the file has no such mount.
    """
    if VOLUMES_IN_FILE not in template:
        raise ClusterError(
            f"kind-config.yaml mounts no {VOLUMES_IN_FILE}; ReadWriteMany volumes need it on every worker."
        )
    return template.replace(VOLUMES_IN_FILE, str(volumes))


def _kind(cluster: Cluster, *arguments: str) -> str:
    environment = dict(os.environ)
    if container_engine() == "podman":
        environment["KIND_EXPERIMENTAL_PROVIDER"] = "podman"
    done = subprocess.run(
        [binaries.program(cluster, "kind"), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ClusterError(f"`kind {' '.join(arguments[:2])}` failed: {last}")
    return done.stdout


def exists(cluster: Cluster) -> bool:
    return NAME in _kind(cluster, "get", "clusters").split()


def kind_up(cluster: Cluster) -> None:
    """Makes the cluster, unless it is there and answers; one that does not answer is made anew.

    Raises:
        ClusterError: if no container engine answers or kind fails.
    """
    if not container_engine():
        raise ClusterError("CLUSTER=kind needs docker or podman, and none answers `info`; start one, or unset CLUSTER.")
    binaries.ensure(cluster, "kind")
    layout = cluster.layout
    layout.volumes.mkdir(parents=True, exist_ok=True)
    layout.cluster.mkdir(parents=True, exist_ok=True)
    config = layout.cluster / "kind-config.yaml"
    config.write_text(config_text((REPOSITORY / "kind-config.yaml").read_text(), layout.volumes))
    if exists(cluster):
        _kind(cluster, "export", "kubeconfig", "--name", NAME, "--kubeconfig", str(layout.kubeconfig))
        if answers(cluster, 60):
            return
        with cluster.report.step("kind: deleted a cluster that does not answer"):
            _kind(cluster, "delete", "cluster", "--name", NAME)
    with cluster.report.step("kind: cluster made", announce=True):
        _kind(
            cluster, "create", "cluster", "--name", NAME, "--config", str(config),
            "--kubeconfig", str(layout.kubeconfig), "--wait", "180s",
        )  # fmt: skip


def answers(cluster: Cluster, seconds: float) -> bool:
    """Whether the API server becomes ready in this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            cluster.api().text("/readyz")
            return True
        except (OSError, ClusterError):
            time.sleep(1)
    return False


def kind_down(cluster: Cluster) -> None:
    """Deletes the cluster, if it is there."""
    if not container_engine():
        return
    binaries.ensure(cluster, "kind")
    if exists(cluster):
        with cluster.report.step("kind: cluster deleted"):
            _kind(cluster, "delete", "cluster", "--name", NAME)
    cluster.layout.kubeconfig.unlink(missing_ok=True)

"""The two images that every cluster needs, pause and CoreDNS, and `ctr`, which puts archives into the nodes."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from localcluster import oci, packages
from localcluster.binaries import PARTS, architecture, folder_of, program, version_of
from localcluster.components import Cluster, Component, Stage
from localcluster.errors import ClusterError
from localcluster.layout import Node

PAUSE_IMAGE = "kubeformer.local/pause:1"
COMPILER = {"cc": "gcc", "/usr/include/stdlib.h": "libc6-dev"}
PAUSE_SOURCE = Path(__file__).with_name("pause.c")


def coredns_image() -> str:
    return f"kubeformer.local/coredns:{version_of(PARTS['coredns'])}"


def ctr(node: Node, *arguments: str, check: bool = True) -> str:
    """Runs ctr against a node's containerd.

    Raises:
        ClusterError: if it fails and `check` is set.
    """
    command = ["ctr", "-a", str(node.containerd_socket), "-n", "k8s.io", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise ClusterError(f"`ctr {' '.join(arguments)}` failed on {node.name}: {done.stderr.strip()}")
    return done.stdout


def has_image(node: Node, name: str) -> bool:
    return name in ctr(node, "images", "list", "-q").split()


def import_image(cluster: Cluster, archive: Path) -> None:
    """Imports an OCI or Docker archive on all nodes at once."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: ctr(node, "images", "import", str(archive)), cluster.layout.nodes))


def build_pause(cluster: Cluster) -> Path:
    """The pause program: compiled once by the C compiler of the machine."""
    target = cluster.layout.binaries / "pause-1" / "pause"
    if target.exists():
        return target
    packages.install(cluster.report, COMPILER)
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise ClusterError("A C compiler is missing, for the pause image; run `apt-get install gcc libc6-dev`.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".new")
    done = subprocess.run(
        [compiler, "-static", "-Os", "-s", "-o", str(temporary), str(PAUSE_SOURCE)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ClusterError(
            f"{compiler} could not compile the pause program: {done.stderr.strip()[:300]}; install libc6-dev."
        )
    temporary.replace(target)
    return target


class BaseImages(Component):
    """Puts the pause and CoreDNS images into both nodes."""

    name = "base-images"
    stage = Stage.API

    def prepare(self, cluster: Cluster) -> None:
        coredns = folder_of(PARTS["coredns"], cluster.layout.binaries)
        for image, folder, source in (
            (PAUSE_IMAGE, cluster.layout.binaries / "pause-1", build_pause(cluster)),
            (coredns_image(), coredns, Path(program(cluster, "coredns"))),
        ):
            if all(has_image(node, image) for node in cluster.layout.nodes):
                continue
            archive = folder / "image.tar"
            if not archive.exists():
                oci.archive(archive, image, {source.name: source}, [f"/{source.name}"], architecture())
            import_image(cluster, archive)

    def ready(self, cluster: Cluster) -> str:
        for node in cluster.layout.nodes:
            for image in (PAUSE_IMAGE, coredns_image()):
                if not has_image(node, image):
                    return f"{node.name} has no image {image}"
        return ""

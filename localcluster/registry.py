"""The local image registry, and `load-image`: how an image that was built here gets onto the nodes.

Debian's docker-registry on loopback, plain HTTP, data in `<cache>/registry`. The containerd of each node pulls
`127.0.0.1:5001/NAME:TAG` from it, and only layers that it does not have yet.

    python -m localcluster load-image my-image.tar                    # made by `docker save` or `podman save`
    python -m localcluster load-image my-image.tar --name trainer:3   # the nodes know it as 127.0.0.1:5001/trainer:3
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from localcluster import binaries, packages
from localcluster.addons import buildah
from localcluster.checks import holder_of, taken
from localcluster.components import Cluster, Command, Component, Stage, Verb
from localcluster.errors import ClusterError
from localcluster.kind import NAME
from localcluster.layout import REGISTRY_PORT, Layout
from localcluster.processes import processes_of

KEPT = 5
"""Tags of each image that stay: pods of an earlier one may still start on another node."""

HOST = f"127.0.0.1:{REGISTRY_PORT}"

CONFIGURATION = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
http: {{addr: {host}}}
"""


def program() -> str:
    return shutil.which("docker-registry") or "/usr/bin/docker-registry"


def answer(path: str, accept: str = "*/*") -> int:
    """The status of a GET to the registry; 0 if there is no answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://{HOST}{path}", headers={"Accept": accept})
    try:
        with opener.open(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def holds(layout: Layout, name: str, tag: str) -> bool:
    """Whether the registry has NAME:TAG. Read from its files, so that it need not run."""
    link = layout.registry / "docker/registry/v2/repositories" / name / "_manifests/tags" / tag / "current/link"
    return link.exists()


def forget_old(layout: Layout, name: str, kept: int = KEPT) -> list[str]:
    """Removes all but the newest tags of an image and returns them; layers go before the registry's next start."""
    tags = sorted(
        (layout.registry / "docker/registry/v2/repositories" / name / "_manifests/tags").glob("*"),
        key=lambda tag: (tag / "current/link").stat().st_mtime if (tag / "current/link").exists() else 0.0,
    )
    old = tags[:-kept]
    for tag in old:
        shutil.rmtree(tag, ignore_errors=True)
    return [tag.name for tag in old]


class Registry(Component):
    """docker-registry on loopback."""

    name = "registry"
    stage = Stage.STORE

    def prepare(self, cluster: Cluster) -> None:
        packages.install(cluster.report, {"docker-registry": "docker-registry"})
        require_port(cluster)
        cluster.layout.registry.mkdir(parents=True, exist_ok=True)
        cluster.layout.config.mkdir(parents=True, exist_ok=True)
        text = CONFIGURATION.format(data=json.dumps(str(cluster.layout.registry)), host=HOST)
        settings = cluster.layout.config / "registry.yaml"
        settings.write_text(text)
        if not answer("/v2/"):
            # Only while nobody pushes: what is being written looks like rubbish.
            clean = [program(), "garbage-collect", "--delete-untagged", str(settings)]
            subprocess.run(clean, capture_output=True, check=False)

    def command(self, cluster: Cluster) -> Command:
        return Command(
            (program(), "serve", str(cluster.layout.config / "registry.yaml")), {"OTEL_TRACES_EXPORTER": "none"}
        )

    def ready(self, cluster: Cluster) -> str:
        return "" if answer("/v2/") == 200 else f"no answer on {HOST}"

    def purge(self, cluster: Cluster) -> None:
        shutil.rmtree(cluster.layout.registry, ignore_errors=True)


REGISTRY = Registry()


def require_port(cluster: Cluster) -> None:
    """Raises ClusterError if somebody else has the registry's port."""
    processes = processes_of(cluster.layout)
    if processes.alive(REGISTRY.name) or not taken(REGISTRY_PORT, "127.0.0.1"):
        return
    holder = holder_of(REGISTRY_PORT)
    if holder not in {pid for pid, _ in processes.marked()}:
        who = f"process {holder}" if holder else "another process"
        raise ClusterError(
            f"Port {REGISTRY_PORT}, which the image registry needs, is taken by {who}; end it and try again."
        )


def start(cluster: Cluster) -> None:
    """Starts the registry alone, for images that are built before or beside `up`; nothing happens if it runs.

    Raises:
        ClusterError: if it does not answer.
    """
    if processes_of(cluster.layout).alive(REGISTRY.name) and not REGISTRY.ready(cluster):
        return
    REGISTRY.prepare(cluster)
    processes_of(cluster.layout).start(REGISTRY.name, REGISTRY.command(cluster))
    otherwise = f"The registry gives no answer on {HOST}; see that no one else has the port."
    buildah.wait_until(lambda: not REGISTRY.ready(cluster), 30, otherwise)


def archive_transport(path: Path) -> tuple[str, str]:
    """Which kind of image archive a tar is ("docker-archive" or "oci-archive"), and the name written in it, or "".

    Raises:
        ClusterError: if it is none.
    """
    try:
        with tarfile.open(path) as archive:
            members = {member.name.removeprefix("./"): member for member in archive if member.isfile()}
            for file, transport in (("manifest.json", "docker-archive"), ("index.json", "oci-archive")):
                if file not in members:
                    continue
                content = archive.extractfile(members[file])
                parsed = json.loads(content.read()) if content else None
                return transport, named_in(parsed)
    except (tarfile.TarError, OSError, ValueError) as error:
        what = str(error).splitlines()[0].rstrip(":")
        raise ClusterError(
            f"{path} cannot be read as an image archive ({what}); give one that `docker save` or `podman save` wrote."
        ) from None
    raise ClusterError(f"{path} is a tar, but no image archive; give a file that `docker save` or `podman save` wrote.")


def named_in(index: object) -> str:
    """The first image name in a docker archive's manifest.json or an OCI archive's index.json; "" if it has none."""
    if isinstance(index, list):
        tags = [tag for entry in index for tag in entry.get("RepoTags") or ()]
    elif isinstance(index, dict):
        annotations = [entry.get("annotations", {}) for entry in index.get("manifests", ())]
        keys = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
        tags = [found[key] for found in annotations for key in keys if key in found]
    else:
        return ""
    return next((str(tag) for tag in tags if tag), "")


def name_on_nodes(name: str) -> str:
    """The name under which the nodes find an image: NAME:TAG without its host, on our registry."""
    host, slash, rest = name.partition("/")
    path = rest if slash and ("." in host or ":" in host or host == "localhost") else name
    return f"{HOST}/{path if ':' in path.rpartition('/')[2] else path + ':latest'}"


def load_image(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """The verb: an archive into the registry, or with kind into its nodes."""
    path = Path(arguments.archive).resolve()
    transport, name = archive_transport(path)
    if cluster.engine == "kind":
        with cluster.report.step(f"loaded {path.name} into the nodes", announce=True):
            buildah.call([binaries.program(cluster, "kind"), "load", "image-archive", str(path), "--name", NAME])
        return 0
    if cluster.engine == "current":
        raise ClusterError("CLUSTER=current has its own registry; push the image there with your container engine.")
    name = arguments.name or name
    if not name:
        raise ClusterError(f"{path} holds no name for its image; give one with --name NAME:TAG.")
    start(cluster)
    with (
        cluster.report.step(f"loaded {path.name} as {name_on_nodes(name)}", announce=True),
        buildah.store(cluster) as store,
    ):
        found = store.run("pull", "-q", f"{transport}:{path}").strip().splitlines()[-1]
        store.push(found, name_on_nodes(name))
        store.run("rmi", "-f", found)
    return 0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("archive", help="a tar that `docker save` or `podman save` wrote")
    parser.add_argument("--name", default="", help="NAME:TAG on the nodes' registry; left out: the name in the archive")


COMPONENTS: tuple[Component, ...] = (REGISTRY,)
VERBS: tuple[Verb, ...] = (Verb("load-image", "give the nodes an image from a tar archive", load_image, configure),)

"""`python -m localcluster images`: builds both images and gives them to the nodes.

    python -m localcluster images              # only what changed; a change of code takes seconds
    python -m localcluster images --wait       # and waits until both nodes hold the heavy image
    python -m localcluster images --vllm       # and the image with vLLM, which a node pulls when a pod wants it

Here there is no container engine and no registry of others: mmdebstrap makes a base, buildah builds the Containerfiles
on it and pushes to the local registry. With kind, the engine that runs it builds, and `kind load` hands over. The tag
of an image is a digest of all that goes into it, so what the registry has is never built again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from localcluster import binaries, checks, registry
from localcluster.addons import buildah
from localcluster.addons.buildah import BASE_OPTIONS, BASE_PACKAGES, SUITE, Store, call
from localcluster.components import REPOSITORY, Cluster, Verb
from localcluster.engine import container_engine
from localcluster.errors import ClusterError
from localcluster.kind import NAME
from localcluster.kube import Api, Object
from localcluster.layout import Layout

BASE = "localhost/kubeformer-base"
JOBS = "/apis/batch/v1/namespaces/kube-system/jobs"
PULL_LABEL = "kubeformer.dev/pull"
FIRST_BUILD_BYTES = 16 * 1024**3
"""Store, registry and both nodes hold the heavy image of 3.5 GB, and building it takes 5 GB for a while."""
ENOUGH_DISK = 12 * 1024**3


@dataclass(frozen=True, slots=True)
class Image:
    """An image of this repository.

    Attributes:
        name: its name everywhere.
        containerfile: from the repository's root, as all paths here.
        dependencies: files that decide about the heavy layer.
        sources: files and folders with the code.
        arguments: build arguments of the local cluster.
        on: the image of this repository that it is built on, instead of the base. Of that one's files only those that
            decide about its heavy layer are in the tag, so that a change of code leaves this image as it is.
    """

    name: str
    containerfile: str
    dependencies: tuple[str, ...]
    sources: tuple[str, ...]
    arguments: Mapping[str, str] = field(default_factory=dict)
    on: Image | None = None


OPERATOR = Image(
    "kubeformer-operator", "operator/Containerfile", ("operator/requirements.lock",), ("operator/kubeformer",)
)
RUNTIME = Image(
    "kubeformer-runtime",
    "runtime/Containerfile",
    ("runtime/requirements.lock",),
    ("operator/kubeformer/__init__.py", "operator/kubeformer/contract", "runtime/kubeformer_runtime"),
    {"ACCELERATOR": "cpu"},
)
IMAGES = (OPERATOR, RUNTIME)
VLLM = Image(
    "kubeformer-vllm",
    "runtime/vllm.Containerfile",
    ("runtime/vllm-cuda.requirements.lock", "runtime/vllm-cpu.requirements.lock"),
    (),
    {"ACCELERATOR": "cpu"},
    on=RUNTIME,
)
"""2 GB on top of the runtime's; built when it is asked for."""


def files_below(root: Path, names: Iterable[str]) -> list[Path]:
    """The files that go into an image, sorted: what `.containerignore` leaves of these files and folders."""
    found: list[Path] = []
    for name in names:
        path = root / name
        found.extend(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    return sorted(file for file in found if "__pycache__" not in file.parts and file.suffix != ".pyc")


def digest_of(root: Path, names: Iterable[str], *more: str) -> str:
    """Twelve hexadecimal digits that change with any of these files, their paths or the other texts."""
    digest = hashlib.sha256()
    for text in more:
        digest.update(text.encode() + b"\0")
    for file in files_below(root, names):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def base_digest() -> str:
    return digest_of(REPOSITORY, (), SUITE, *BASE_PACKAGES, *BASE_OPTIONS)


def tag_of(image: Image, root: Path = REPOSITORY) -> str:
    """The tag: a digest of base, Containerfile, locks, arguments and code."""
    names = (image.containerfile, *image.dependencies, *image.sources)
    if image.on is not None:
        names += (image.on.containerfile, *image.on.dependencies)
    return digest_of(root, names, base_digest(), json.dumps(dict(image.arguments), sort_keys=True))


def reference(cluster: Cluster, image: Image) -> str:
    """The name under which the nodes find an image of the code as it is now."""
    return f"{registry.HOST + '/' if cluster.engine == 'local' else 'kubeformer.local/'}{image.name}:{tag_of(image)}"


def base_name(store: Store, layout: Layout, cluster: Cluster) -> str:
    """The base image in the store, made if it is not there."""
    name = f"{BASE}:{base_digest()}"
    if store.has(name):
        return name
    archive = layout.cache / "downloads" / f"base-{base_digest()}.tar"
    if not archive.exists():
        with cluster.report.step(f"base image: Debian {SUITE} with Python 3.11", announce=True):
            buildah.make_base(archive)
    store.build_base(name, archive)
    return name


def build_local(cluster: Cluster, images: Sequence[Image]) -> dict[str, str]:
    """Builds with buildah and pushes to the local registry. Returns name to reference."""
    pushed: dict[str, str] = {}
    if RUNTIME in images and not (cluster.layout.cache / "buildah/overlay").exists():
        checks.require_free(cluster.layout.cache, FIRST_BUILD_BYTES)
    if VLLM in images:
        checks.require_free(cluster.layout.cache, ENOUGH_DISK)
    registry.start(cluster)
    with buildah.store(cluster) as store:
        base = base_name(store, cluster.layout, cluster)
        below = [image.on for image in images if image.on is not None and image.on not in images]
        for image in (*(on for on in below if not store.has(f"localhost/{on.name}")), *images):
            name = f"localhost/{image.name}"

            def said(line: str, image: Image = image) -> None:
                title = buildah.step_title(line)
                if title:
                    cluster.report.say(f"         {image.name} {title}")

            arguments = {"BASE": base if image.on is None else f"localhost/{image.on.name}", **image.arguments}
            with cluster.report.step(f"{image.name}: built", announce=True):
                target = ""
                while target != reference(cluster, image):  # code that is edited during the build is built again
                    target = reference(cluster, image)
                    labels = {"org.opencontainers.image.version": target.rpartition(":")[2]}
                    store.build(REPOSITORY / image.containerfile, name, arguments, labels, said)
            with cluster.report.step(f"{image.name}: pushed to {registry.HOST}", announce=True):
                push(cluster, store, name, target)
            pushed[image.name] = target
            registry.forget_old(cluster.layout, image.name)
        store.prune()
        tight = shutil.disk_usage(cluster.layout.cache).free < ENOUGH_DISK
    if tight:
        drop_store(cluster)
    return pushed


def push(cluster: Cluster, store: Store, name: str, target: str, tries: int = 3) -> None:
    """Pushes an image. The registry may be stopped and started meanwhile, by `down` or `up`: then once more.

    Raises:
        ClusterError: if it fails again and again.
    """
    for left in reversed(range(tries)):
        try:
            registry.start(cluster)
            store.push(name, target)
            return
        except ClusterError:
            if not left:
                raise
            time.sleep(1)


def drop_store(cluster: Cluster) -> None:
    """Deletes the layers kept for the next build; that one then takes minutes instead of seconds."""
    with (
        cluster.report.step("the disk is nearly full: deleted the layers kept for the next build"),
        buildah.store(cluster) as store,
    ):
        store.run("rmi", "--all", "--force")
    shutil.rmtree(cluster.layout.cache / "buildah", ignore_errors=True)


def build_with_engine(cluster: Cluster, images: Sequence[Image]) -> dict[str, str]:
    """Builds with docker or podman and hands the images to kind's nodes. Returns name to reference."""
    loaded: dict[str, str] = {}
    engine = container_engine()
    if not engine:
        raise ClusterError("CLUSTER=kind needs docker or podman, and neither answers; start one, or set CLUSTER=local.")
    for image in images:
        target = reference(cluster, image)
        below = {"BASE": reference(cluster, image.on)} if image.on is not None else {}
        arguments = [f"--build-arg={key}={value}" for key, value in {**below, **image.arguments}.items()]
        with cluster.report.step(f"{image.name}: built with {engine}", announce=True):
            call(
                [engine, "build", "--file", image.containerfile, "--tag", target, *arguments, "."],
                said=lambda line: None,
            )
        with cluster.report.step(f"{image.name}: loaded into the nodes", announce=True):
            call([binaries.program(cluster, "kind"), "load", "docker-image", target, "--name", NAME])
        loaded[image.name] = target
    return loaded


def run_images(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """The verb."""
    if cluster.engine == "current":
        raise ClusterError(
            "CLUSTER=current pulls from a registry of yours: build operator/Containerfile and runtime/Containerfile, "
            "push both, and run `python -m localcluster install --set images.operator=... --set images.runtime=...`."
        )
    images = (*IMAGES, VLLM) if arguments.vllm or present(cluster, VLLM) else IMAGES
    record = {image.name: reference(cluster, image) for image in images}
    missing = [image for image in images if arguments.force or not present(cluster, image)]
    for image in images:
        if image not in missing:
            cluster.report.say(f"         {image.name}: unchanged ({tag_of(image)})")
    if missing and cluster.engine == "local":
        record.update(build_local(cluster, missing))
    elif missing:
        record.update(build_with_engine(cluster, missing))
    (cluster.layout.cache / "images.json").write_text(json.dumps(record, indent=1))
    pull_ahead(cluster, wait=arguments.wait)
    return 0


def last_built(cluster: Cluster) -> Mapping[str, str]:
    """Name to reference of the images that `images` made last, whatever the code says by now.

    Raises:
        ClusterError: if there are none.
    """
    try:
        found: Mapping[str, str] = json.loads((cluster.layout.cache / "images.json").read_text())
    except (OSError, ValueError):
        raise ClusterError("No images have been built yet; run `python -m localcluster images`.") from None
    return found


def present(cluster: Cluster, image: Image) -> bool:
    """Whether the nodes can get the image already. kind's nodes are not asked: its engine builds from its cache."""
    return cluster.engine == "local" and registry.holds(cluster.layout, image.name, tag_of(image))


def pull_job(image: str, node: str) -> Object:
    """A Job that does nothing on a node but have the image pulled; it goes by itself."""
    name = f"pull-{hashlib.sha256(image.encode()).hexdigest()[:8]}-{node}"
    container = {
        "name": "pull",
        "image": image,
        "command": ["/opt/venv/bin/python", "-c", ""],
        "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}},
    }
    pod = {
        "nodeName": node,
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "kube-system", "labels": {PULL_LABEL: ""}},
        "spec": {"ttlSecondsAfterFinished": 60, "activeDeadlineSeconds": 900, "template": {"spec": pod}},
    }


def pull_ahead(cluster: Cluster, wait: bool = False) -> None:
    """Has each node pull the heavy image in the background, so that the first training pod does not wait for it.

    Nothing happens while the cluster is down: `install` asks again.
    """
    image = last_built(cluster)[RUNTIME.name]
    try:
        api = cluster.api()
        lacking = lacking_nodes(api, image)
        for job in api.get(f"{JOBS}?labelSelector={PULL_LABEL}")["items"]:
            if image not in json.dumps(job["spec"]):  # of an image that is out of date
                api.delete(f"{JOBS}/{job['metadata']['name']}?propagationPolicy=Background")
        for name in lacking:
            api.apply(pull_job(image, name))
    except (OSError, ClusterError):
        return
    if not lacking:
        return
    if not wait:
        cluster.report.say(f"         {', '.join(lacking)}: pulling {RUNTIME.name} in the background")
        return
    with cluster.report.step(f"{RUNTIME.name} pulled on {', '.join(lacking)}", announce=True):
        api.wait("That all nodes have the image", lambda api: not lacking_nodes(api, image), 600, 1.0)


def lacking_nodes(api: Api, image: str) -> list[str]:
    """The names of the nodes that do not list an image."""
    nodes = api.get("/api/v1/nodes")["items"]
    return [node["metadata"]["name"] for node in nodes if not node_has(node, image)]


def node_has(node: Object, image: str) -> bool:
    """Whether a node lists the image among those it has. KWOK's nodes, which are not real, need none."""
    if "kwok.x-k8s.io/node" in node["metadata"].get("annotations", {}):
        return True
    return any(image in (entry.get("names") or ()) for entry in node["status"].get("images", ()))


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="until both nodes have pulled the heavy image")
    parser.add_argument(
        "--vllm", action="store_true", help="the image with vLLM too, for model servers with that engine"
    )
    parser.add_argument("--force", action="store_true", help="build even what the registry has")


VERBS: tuple[Verb, ...] = (
    Verb("images", "build the operator's and the runtime's image and give them to the nodes", run_images, configure),
)

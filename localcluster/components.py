"""The parts a cluster is made of, and how another module adds one: the interface between the rooms of `localcluster`.

A **component** is one process on this machine that belongs to the cluster (etcd, a kubelet, the image registry, ...).
Subclass `Component`, set `name` and `stage`, and override what you need; everything has a default:

    class Registry(Component):
        name = "registry"               # `python -m localcluster kill registry` and the log file use it
        stage = Stage.STORE             # started with all others of its stage; the next stage waits until it is ready

        def prepare(self, cluster):     # before the start: write configuration; must be harmless twice
            ...
        def command(self, cluster):     # the process; None for a component without one (then only prepare/ready count)
            return Command(argv=("docker-registry", "serve", str(path)), environment={})
        def ready(self, cluster):       # polled; "" when ready, otherwise what is missing, in a few words
            return "" if answers(...) else "no answer on port 5001"
        def clean(self, cluster):       # on `down`, after its process ended, and after crashes: remove mounts, nftables
            ...                         # tables, devices; called even if it never ran; harmless when nothing is there
        def purge(self, cluster):       # on `down --purge`: delete its data
            ...

The process runs detached, with its output in `<cache>/cluster/logs/<name>.log`, an environment of PATH, HOME and what
the command names, and is started again by the supervisor when it dies. A Python component is run as
`python_command("localcluster.volumes", "serve")`, from the repository's root, and talks to the API server with
`cluster.api()` (a small client, `localcluster.kube.Api`: get, apply, patch, delete, watch, wait), or with any client
and `cluster.layout.kubeconfig`.

A **verb** is a word of the command line: `Verb(name, help, run, configure)`, where `run(cluster, arguments) -> int` and
`configure(parser)` adds arguments to an argparse parser.

**To hang something in**, a module listed in `EXTENSIONS` defines `COMPONENTS: tuple[Component, ...]` and/or
`VERBS: tuple[Verb, ...]`, and may define `def settled(cluster: Cluster) -> None`, called at the end of `up` when all
components are ready (for objects in the cluster: StorageClasses, Deployments; use `cluster.api().apply(...)`).
A module that is not there is passed over.

Agreed between modules:
- the registry answers plain HTTP on 127.0.0.1:5001 (`layout.REGISTRY_PORT`), data in `layout.registry`; containerd of
  both nodes takes images named `127.0.0.1:5001/...` and `localhost:5001/...` from there. containerd reads
  `<node.folder>/certs.d/<host>/hosts.toml` at each pull, so more mirrors may be written there at any time.
- `ctr` speaks to a node's containerd by `-a <node.containerd_socket> -n k8s.io`; `oci.py` makes one-layer images of
  static binaries; `base_images.import_image(cluster, archive)` imports an archive on both nodes.
- volumes: data in `layout.volumes`.
- policy: nodes use the CNI plugin `ptp`, so every packet between two pods, also of one node, is routed by this machine
  and passes the nftables hook `forward` (never bridged). Pods of node N have addresses in `node.pod_range`; the host's
  veth of a pod is the device of its /32 route (`ip route get ADDRESS`). A pod that reaches itself by a Service passes
  `forward` too, with its own address on both sides. Nftables tables of ours are named `kubeformer...`; whoever makes
  one deletes it in `clean`.
- CLUSTER=kind: components whose `engines` contains "kind" are started there as well, against the same kubeconfig path.
"""

from __future__ import annotations

import argparse
import enum
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from localcluster.layout import Layout
from localcluster.report import Report

if TYPE_CHECKING:
    from localcluster.kube import Api

REPOSITORY = Path(__file__).resolve().parent.parent

EXTENSIONS = (
    "localcluster.registry",
    "localcluster.images",
    "localcluster.volumes",
    "localcluster.policy",
    "localcluster.install",
)


class Stage(enum.IntEnum):
    """The order of starting. Within a stage everything starts at once; `down` goes through them backwards."""

    STORE = 0
    """etcd, containerd, the registry: needs nothing."""
    API = 1
    """The API server."""
    CONTROL = 2
    """Whatever speaks to the API server: controller-manager, scheduler, kubelets, kube-proxy, controllers of ours."""
    ADDON = 3
    """What needs ready nodes."""


@dataclass(frozen=True, slots=True)
class Command:
    """How a process is started: its arguments, and variables beside PATH and HOME."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"


def python_command(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Command:
    """A command that runs a module of this repository with the Python that runs now."""
    return Command((sys.executable, "-m", module, *arguments), dict(environment or {}), str(REPOSITORY))


@dataclass(frozen=True, slots=True)
class Cluster:
    """What every verb and component is given.

    Attributes:
        layout: paths and addresses.
        engine: "local", "kind" or "current" (the kubeconfig at hand).
        environment: the variables of the person who called.
        report: prints steps.
    """

    layout: Layout
    engine: str
    environment: Mapping[str, str]
    report: Report

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig to use: ours, or the one at hand with CLUSTER=current."""
        if self.engine == "current":
            given = self.environment.get("KUBECONFIG", "").split(":")[0]
            return Path(given) if given else Path(self.environment.get("HOME", "/root")) / ".kube" / "config"
        return self.layout.kubeconfig

    def api(self) -> Api:
        """A client of the API server, as administrator."""
        from localcluster.kube import Api

        return (Api.from_any_kubeconfig if self.engine == "current" else Api.from_kubeconfig)(self.kubeconfig)


class Component:
    """One process of the cluster; see the module's text."""

    name: str = ""
    stage: Stage = Stage.ADDON
    engines: tuple[str, ...] = ("local",)
    ready_seconds: float = 60.0
    stop_seconds: float = 10.0
    """How long the process may take to end after SIGTERM, before it is killed."""

    def prepare(self, cluster: Cluster) -> None:
        """Writes what the process needs. Harmless when done before."""

    def command(self, cluster: Cluster) -> Command | None:
        """The process to run, or None when there is none."""
        return None

    def ready(self, cluster: Cluster) -> str:
        """Empty when ready; otherwise what is missing, in a few words."""
        return ""

    def clean(self, cluster: Cluster) -> None:
        """Removes what the process leaves in the kernel. Harmless when nothing is there."""

    def purge(self, cluster: Cluster) -> None:
        """Deletes its data."""


@dataclass(frozen=True, slots=True)
class Verb:
    """A word of the command line."""

    name: str
    help: str
    run: Callable[[Cluster, argparse.Namespace], int]
    configure: Callable[[argparse.ArgumentParser], None] = lambda parser: None


@dataclass(frozen=True, slots=True)
class Extensions:
    """What the modules of `EXTENSIONS` add."""

    components: tuple[Component, ...]
    verbs: tuple[Verb, ...]
    settled: tuple[Callable[[Cluster], None], ...]


def load_extensions(modules: Iterable[str] = EXTENSIONS) -> Extensions:
    """Imports the extension modules that are there."""
    components: list[Component] = []
    verbs: list[Verb] = []
    settled: list[Callable[[Cluster], None]] = []
    for name in modules:
        if importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        components.extend(getattr(module, "COMPONENTS", ()))
        verbs.extend(getattr(module, "VERBS", ()))
        if hasattr(module, "settled"):
            settled.append(module.settled)
    return Extensions(tuple(components), tuple(verbs), tuple(settled))

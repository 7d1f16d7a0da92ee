"""`up`: from whatever state to a cluster that is ready. Harmless when it runs already, and after an interruption."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from localcluster import binaries, checks, packages, pki
from localcluster.base_images import BaseImages
from localcluster.components import REPOSITORY, Cluster, Command, Component, Stage, load_extensions
from localcluster.controlplane import ApiServer, ControllerManager, Etcd, KubeletAccess, Scheduler
from localcluster.dns import Dns
from localcluster.errors import ClusterError
from localcluster.kind import kind_up
from localcluster.network import Network, foreign_routes, ip
from localcluster.node import Containerd, Kubelet, KubeProxy
from localcluster.processes import Processes, processes_of

CORE: tuple[Component, ...] = (
    Network(),
    Etcd(),
    Containerd(0),
    Containerd(1),
    ApiServer(),
    BaseImages(),
    KubeletAccess(),
    ControllerManager(),
    Scheduler(),
    Kubelet(0),
    Kubelet(1),
    KubeProxy(),
    Dns(),
)


def all_components(engine: str) -> tuple[Component, ...]:
    """The core's components and those of the extensions, for an engine."""
    return tuple(part for part in (*CORE, *load_extensions().components) if engine in part.engines)


@contextlib.contextmanager
def only_one(cluster: Cluster) -> Iterator[None]:
    """Holds the lock of `up` and `down`.

    Raises:
        ClusterError: if another one has held it for a minute.
    """
    cluster.layout.cache.mkdir(parents=True, exist_ok=True)
    with open(cluster.layout.lock, "w") as lock:
        deadline = time.monotonic() + 60
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ClusterError("Another `up` or `down` is running; wait for it, or end it.") from None
                if not told:
                    cluster.report.say("         waiting for another `up` or `down` to end")
                    told = True
                time.sleep(0.2)
        yield


def supervisor_command(cluster: Cluster) -> Command:
    layout = cluster.layout
    argv = (sys.executable, "-m", "localcluster.supervisor", str(layout.cluster), str(layout.records), str(layout.logs))
    return Command(argv, {}, str(REPOSITORY))


def start_component(cluster: Cluster, processes: Processes, component: Component) -> None:
    """Prepares and starts one component, and waits until it is ready.

    Raises:
        ClusterError: if it does not become ready in time.
    """
    component.prepare(cluster)
    command = component.command(cluster)
    if command is not None:
        processes.start(component.name, command)
    wait_ready(cluster, processes, component)


def wait_ready(cluster: Cluster, processes: Processes, component: Component) -> None:
    """Polls until the component is ready. Its process may die meanwhile: the supervisor starts it again."""
    deadline = time.monotonic() + component.ready_seconds
    pause = 0.05
    while True:
        try:
            missing = component.ready(cluster)
        except (OSError, ClusterError) as error:
            missing = str(error)
        if not missing:
            return
        if time.monotonic() > deadline:
            log = cluster.layout.logs / f"{component.name}.log"
            raise ClusterError(
                f"{component.name} is not ready after {component.ready_seconds:.0f} s: "
                f"{missing.rstrip('.')}. See {log}."
            )
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)


def in_parallel(jobs: Sequence[Callable[[], None]]) -> None:
    """Runs all jobs at once and raises the first error when all have ended."""
    with ThreadPoolExecutor(max_workers=max(1, len(jobs))) as pool:
        for future in [pool.submit(job) for job in jobs]:
            future.result()


def start_all(cluster: Cluster, components: Sequence[Component]) -> None:
    """Starts components stage by stage; those of a stage at once."""
    processes = processes_of(cluster.layout)
    titles = {
        Stage.STORE: "network, etcd and container runtimes",
        Stage.API: "API server and base images",
        Stage.CONTROL: "controllers, scheduler and nodes",
        Stage.ADDON: "DNS and add-ons",
    }
    for stage in Stage:
        members = [component for component in components if component.stage == stage]
        if not members:
            continue
        with cluster.report.step(f"{titles[stage]} ready ({', '.join(member.name for member in members)})"):
            # Devices come before whatever listens on their addresses.
            if stage is Stage.STORE:
                for member in members:
                    if member.command(cluster) is None:
                        member.prepare(cluster)
            in_parallel([functools.partial(start_component, cluster, processes, member) for member in members])


def up(cluster: Cluster) -> None:
    """Brings the cluster up, of whichever engine.

    Raises:
        ClusterError: with what to do.
    """
    if cluster.engine == "current":
        version = cluster.api().get("/version")["gitVersion"]
        cluster.report.say(f"         CLUSTER=current: using {cluster.kubeconfig}, Kubernetes {version}")
        return
    if cluster.engine == "local":
        checks.require_root()
    with only_one(cluster):
        start = time.monotonic()
        if cluster.engine == "kind":
            kind_up(cluster)
            processes_of(cluster.layout).start("supervisor", supervisor_command(cluster))
            start_all(cluster, all_components("kind"))
        else:
            local_up(cluster)
        for settled in load_extensions().settled:
            settled(cluster)
        cluster.report.say(
            f"{time.monotonic() - start:5.1f} s  the cluster is up; export KUBECONFIG={cluster.kubeconfig}"
        )


def local_up(cluster: Cluster) -> None:
    """Brings the cluster without a container engine up; the lock is held.

    Raises:
        ClusterError: with what to do.
    """
    checks.require_alone(cluster)
    checks.require_disk(cluster)
    packages.install(cluster.report)
    binaries.ensure(cluster, *checks.NEEDED_PARTS)
    processes = processes_of(cluster.layout)
    checks.require_ports(cluster, processes)
    taken = foreign_routes(cluster.layout, _routes())
    if taken:
        raise ClusterError(f"The cluster's addresses are in use on this machine ({taken[0]}); end what uses them.")
    if not pki.valid(cluster.layout.keys, cluster.layout.nodes):
        with cluster.report.step("keys and certificates"):
            pki.ensure_keys(cluster.layout)
    processes.start("supervisor", supervisor_command(cluster))
    start_all(cluster, all_components("local"))


def _routes() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(ip("-j", "route") or "[]")
    return found

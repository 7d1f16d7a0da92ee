"""The verbs of the core: up, down, status, kubeconfig, binaries, kill, restart."""

from __future__ import annotations

import argparse
import time

from localcluster import binaries, checks
from localcluster.components import Cluster, Verb
from localcluster.errors import ClusterError
from localcluster.kind import kind_down
from localcluster.processes import processes_of, start_time
from localcluster.teardown import forget, purge, tear_down
from localcluster.up import all_components, only_one, start_component, up


def run_up(cluster: Cluster, options: argparse.Namespace) -> int:
    up(cluster)
    return 0


def run_down(cluster: Cluster, options: argparse.Namespace) -> int:
    if cluster.engine == "current":
        raise ClusterError(
            "CLUSTER=current is somebody's cluster, and `down` does not end it; unset CLUSTER to end the local one."
        )
    checks.require_root()
    components = all_components(cluster.engine)
    with only_one(cluster):
        if cluster.engine == "kind":
            kind_down(cluster)
        tear_down(cluster, components)
        if options.purge:
            purge(cluster, components)
        elif options.objects:
            forget(cluster)
    return 0


def run_status(cluster: Cluster, options: argparse.Namespace) -> int:
    """Prints a line a component. Exit code 0 if all are ready, else 3."""
    processes = processes_of(cluster.layout)
    code = 0
    for component in all_components(cluster.engine):
        record = processes.alive(component.name)
        try:
            missing = component.ready(cluster)
            if component.command(cluster) is not None and record is None:
                missing = missing or "answers, but is not ours"
        except (OSError, ClusterError) as error:
            missing = str(error)
        code = 3 if missing else code
        place = f"pid {record.pid}" if record else "-"
        cluster.report.say(f"{component.name:24} {place:12} {missing or 'ready'}")
    try:
        for node in cluster.api().get("/api/v1/nodes")["items"]:
            ready = next(
                (entry["status"] for entry in node["status"]["conditions"] if entry["type"] == "Ready"), "Unknown"
            )
            can = node["status"]["allocatable"]
            cluster.report.say(f"{node['metadata']['name']:24} Ready={ready} cpu={can['cpu']} memory={can['memory']}")
    except (OSError, ClusterError):
        code = 3
    return code


def run_kubeconfig(cluster: Cluster, options: argparse.Namespace) -> int:
    if not cluster.kubeconfig.exists():
        raise ClusterError(f"There is no kubeconfig at {cluster.kubeconfig}; run `python -m localcluster up`.")
    print(cluster.kubeconfig)
    return 0


def run_binaries(cluster: Cluster, options: argparse.Namespace) -> int:
    parts = tuple(options.parts) or tuple(binaries.PARTS)
    unknown = sorted(set(parts) - set(binaries.PARTS))
    if unknown:
        raise ClusterError(f"There is no part {unknown[0]!r}; parts are {', '.join(binaries.PARTS)}.")
    checks.require_disk(cluster, parts)
    binaries.ensure(cluster, *parts)
    for part in parts:
        print(binaries.folder_of(binaries.PARTS[part], cluster.layout.binaries))
    return 0


def run_kill(cluster: Cluster, options: argparse.Namespace) -> int:
    """kill -9. The supervisor starts it again at once, or `restart` does after `--stay-down`."""
    processes = processes_of(cluster.layout)
    name = _component(cluster, options.component)
    if options.stay_down:
        processes.want(name, False)
    if not processes.kill(name):
        raise ClusterError(f"{name} does not run; see `python -m localcluster status`.")
    return 0


def run_restart(cluster: Cluster, options: argparse.Namespace) -> int:
    """Kills it if it runs, starts it, waits until it is ready."""
    processes = processes_of(cluster.layout)
    name = _component(cluster, options.component)
    component = next(part for part in all_components(cluster.engine) if part.name == name)
    with cluster.report.step(f"{name} restarted"):
        record = processes.alive(name)
        if record:
            processes.want(name, False)
            processes.kill(name)
            while start_time(record.pid) == record.start:
                time.sleep(0.02)
        start_component(cluster, processes, component)
    return 0


def component_names(cluster: Cluster) -> list[str]:
    """The components that are processes."""
    return [part.name for part in all_components(cluster.engine) if part.command(cluster) is not None]


def _component(cluster: Cluster, name: str) -> str:
    known = component_names(cluster)
    if name not in known:
        raise ClusterError(f"There is no component {name!r}; components are {', '.join(known)}.")
    return name


def _configure_kill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("component", help="for example kube-apiserver")
    parser.add_argument(
        "--stay-down", action="store_true", help="until `restart`; otherwise it is started again at once"
    )


def _configure_down(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--purge", action="store_true", help="delete everything but the binaries")
    parser.add_argument("--objects", action="store_true", help="delete objects and volumes; keep images and binaries")


def _configure_binaries(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="kubernetes, etcd, coredns, helm, kind; all by default"
    )


def _configure_restart(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("component", help="for example kube-apiserver")


VERBS: tuple[Verb, ...] = (
    Verb("up", "start the cluster, or go on where a start was interrupted", run_up),
    Verb("down", "end the cluster; objects, volumes and images stay for the next `up`", run_down, _configure_down),
    Verb("status", "say what runs and what is missing; exit code 3 if something is", run_status),
    Verb("kubeconfig", "print the path of the kubeconfig", run_kubeconfig),
    Verb(
        "binaries", "bring the programs into the cache: find, download or build them", run_binaries, _configure_binaries
    ),
    Verb("kill", "kill -9 a component, for tests", run_kill, _configure_kill),
    Verb(
        "restart", "kill a component if it runs, start it and wait until it is ready", run_restart, _configure_restart
    ),
)

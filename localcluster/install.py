"""`python -m localcluster install`: the Helm chart, with the images that were built last, until all of it answers.

    python -m localcluster install                             # harmless twice; after `images` it brings the new code
    python -m localcluster install --set operator.replicas=2   # values of the chart, as helm takes them

Everybody's way, with a registry of one's own, is `helm install kubeformer helm/kubeformer --set images.operator=...`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Mapping, Sequence

from localcluster import binaries
from localcluster.components import REPOSITORY, Cluster, Verb
from localcluster.errors import ClusterError
from localcluster.images import OPERATOR, RUNTIME, VLLM, last_built, pull_ahead
from localcluster.kube import Api, Object

NAMESPACE = "kubeformer-system"
RELEASE = "kubeformer"
CHART = "helm/kubeformer"
WAIT = "4m"
UNFINISHED = ("pending-install", "pending-upgrade", "pending-rollback")


def namespace() -> Object:
    """Our namespace: its pods have to keep to Pod Security `restricted`."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def values(images: Mapping[str, str], gangs: bool) -> Object:
    """What is set in the chart: the images, if they were built here, and gangs, if the API server has them."""
    built = {"operator": images[OPERATOR.name], "runtime": images[RUNTIME.name]} if images else {}
    if VLLM.name in images:
        built["vllm"] = images[VLLM.name]
    return {**({"images": built} if built else {}), "gangs": gangs}


def has_gangs(api: Api) -> bool:
    """Whether the API server has PodGroups, for workers that start together or not at all."""
    groups = api.get("/apis")["groups"]
    versions = [version["groupVersion"] for group in groups for version in group["versions"]]
    return "scheduling.k8s.io/v1beta1" in versions


def helm_command(program: str, kubeconfig: str, more: Sequence[str]) -> list[str]:
    """Installs the chart or upgrades to it, and waits until its pods are ready."""
    return [
        program, "upgrade", RELEASE, str(REPOSITORY / CHART), "--install", "--namespace", NAMESPACE,
        "--kubeconfig", kubeconfig, "--values", "-", "--wait", "--timeout", WAIT,
        *(word for value in more for word in ("--set", value)),
    ]  # fmt: skip


def forget_unfinished(api: Api) -> None:
    """Deletes helm's records of an installation that was interrupted: it would refuse any other because of them."""
    selector = f"owner=helm,name={RELEASE},status in ({','.join(UNFINISHED)})".replace(" ", "%20")
    for secret in api.get(f"/api/v1/namespaces/{NAMESPACE}/secrets?labelSelector={selector}")["items"]:
        api.delete(f"/api/v1/namespaces/{NAMESPACE}/secrets/{secret['metadata']['name']}")


def trouble(api: Api) -> str:
    """What keeps our pods from being ready, a line each."""
    lines = []
    for pod in api.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]:
        for state in pod["status"].get("containerStatuses", ()):
            waiting = state.get("state", {}).get("waiting") or state.get("lastState", {}).get("terminated")
            if waiting and not state.get("ready"):
                said = str(waiting.get("message", "")).strip()[-600:]
                lines.append(f"{pod['metadata']['name']}: {waiting.get('reason', '')} {said}".rstrip())
        for condition in pod["status"].get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition["status"] != "True":
                lines.append(f"{pod['metadata']['name']}: {condition.get('reason', '')} {condition.get('message', '')}")
    return "\n".join(lines)


def run_install(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """The verb."""
    binaries.ensure(cluster, "helm")
    api = cluster.api()
    images: Mapping[str, str] = {}
    if cluster.engine != "current":
        images = last_built(cluster)
        pull_ahead(cluster)
    api.apply(namespace())
    forget_unfinished(api)
    given = values(images, has_gangs(api))
    command = helm_command(binaries.program(cluster, "helm"), str(cluster.kubeconfig), arguments.set)
    folder = cluster.layout.cache / "helm"
    environment = {
        **os.environ,
        "HELM_CACHE_HOME": str(folder),
        "HELM_CONFIG_HOME": str(folder),
        "HELM_DATA_HOME": str(folder),
    }
    with cluster.report.step(f"{CHART} installed as {NAMESPACE}/{RELEASE}, its pods are ready", announce=True):
        done = subprocess.run(
            command, input=json.dumps(given), env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ClusterError("\n".join(filter(None, (f"helm failed: {done.stderr.strip()}", trouble(api)))))
    return 0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a value of the chart; may be repeated"
    )


VERBS: tuple[Verb, ...] = (
    Verb("install", "install the Helm chart with the images built last", run_install, configure),
)

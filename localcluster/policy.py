"""Enforces NetworkPolicies: the plain network of the nodes would accept them and let everything through.

A process that turns policies, pods and namespaces into one nftables table, `kubeformer_policy`, and replaces it whole
when something changed. It works because every packet of a pod passes this machine's `forward` hook; see
`addons/network_policy.py` for what the rules say. When it dies, the rules stay as they were until it is back.

    python -m localcluster.policy KUBECONFIG          # the enforcer; `up` starts it
    nft list table inet kubeformer_policy             # what it enforces now
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from localcluster import packages
from localcluster.addons.network_policy import TABLE, ruleset
from localcluster.addons.reconcile import run, tell
from localcluster.components import Cluster, Command, Component, Stage, python_command
from localcluster.kube import Api

POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"
PODS = "/api/v1/pods"
NAMESPACES = "/api/v1/namespaces"


def nft(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True, check=False)


@dataclass(slots=True)
class Enforcer:
    """Remembers what it has set, so that the kernel is left alone while nothing changes."""

    set: str = ""

    def look(self, api: Api) -> None:
        """Brings the table in step with the API server."""
        policies = api.get(POLICIES)["items"]
        # From the API server's cache, which is also where the watches come from.
        pods = api.get(f"{PODS}?resourceVersion=0")["items"] if policies else []
        wanted = ruleset(policies, pods, api.get(NAMESPACES)["items"])
        if wanted == self.set:
            return
        done = nft("-f", "-", text=wanted)
        if done.returncode != 0:
            # The old rules stay; the next change of anything tries again.
            tell(f"nft refused the rules: {done.stderr.strip()[:2000]}")
            return
        self.set = wanted
        tell(f"enforcing {len(policies)} policies with {wanted.count(' return')} rules")


class PolicyEnforcer(Component):
    """The process that enforces NetworkPolicies."""

    name = "network-policy"
    stage = Stage.CONTROL

    def prepare(self, cluster: Cluster) -> None:
        packages.install(cluster.report, {"nft": "nftables"})

    def command(self, cluster: Cluster) -> Command:
        return python_command("localcluster.policy", str(cluster.kubeconfig))

    def ready(self, cluster: Cluster) -> str:
        return "" if nft("list", "table", "inet", TABLE).returncode == 0 else f"no nftables table {TABLE}"

    def clean(self, cluster: Cluster) -> None:
        try:
            nft("delete", "table", "inet", TABLE)
        except FileNotFoundError:  # without nft there is no table either
            pass


COMPONENTS: tuple[Component, ...] = (PolicyEnforcer(),)


def main(kubeconfig: str) -> None:
    run(Api.from_kubeconfig(Path(kubeconfig)), (POLICIES, PODS, NAMESPACES), Enforcer().look)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The control plane: etcd, API server, controller-manager and scheduler, each a component."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import urllib.request
from pathlib import Path
from typing import Any

from localcluster import layout as places
from localcluster import pki
from localcluster.binaries import program
from localcluster.components import Cluster, Command, Component, Stage

UNSAFE_VARIABLE = "KUBEFORMER_UNSAFE_NO_FSYNC"
"""Set to 1 by tests: etcd does not wait for the disk, and may lose its data when the machine (not etcd) crashes."""

GATES = "GenericWorkload=true"
"""Gang scheduling by Kubernetes' own scheduler."""


def listening(address: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


def healthy(url: str) -> str:
    """Empty when a health endpoint on this machine answers 200; otherwise what happened. Its certificate is not
    checked: the answer is public, and nothing is told to it."""
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
    try:
        with opener.open(url, timeout=2):
            return ""
    except OSError as error:
        return f"{url} says {error}"


class Etcd(Component):
    """The store. On loopback, and only for holders of a certificate of its own authority."""

    name = "etcd"
    stage = Stage.STORE

    def command(self, cluster: Cluster) -> Command:
        keys = cluster.layout.keys
        url, peer = f"https://127.0.0.1:{places.ETCD_PORT}", f"http://127.0.0.1:{places.ETCD_PEER_PORT}"
        arguments = [
            program(cluster, "etcd"),
            "--name=kubeformer",
            f"--data-dir={cluster.layout.etcd}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=kubeformer={peer}",
            f"--cert-file={keys / 'etcd.crt'}",
            f"--key-file={keys / 'etcd.key'}",
            f"--trusted-ca-file={keys / 'etcd-ca.crt'}",
            "--client-cert-auth=true",
            "--log-level=warn",
            "--snapshot-count=10000",
        ]
        if cluster.environment.get(UNSAFE_VARIABLE) == "1":
            arguments.append("--unsafe-no-fsync")
        return Command(tuple(arguments), pki.inputs(cluster.layout))

    def ready(self, cluster: Cluster) -> str:
        keys = cluster.layout.keys
        tls = ssl.create_default_context(cafile=str(keys / "etcd-ca.crt"))
        tls.load_cert_chain(keys / "etcd-client.crt", keys / "etcd-client.key")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
        try:
            with opener.open(f"https://127.0.0.1:{places.ETCD_PORT}/health", timeout=3) as answer:
                return "" if json.loads(answer.read()).get("health") == "true" else "etcd is not healthy"
        except (OSError, ValueError) as error:
            return f"etcd does not answer ({error})"

    def purge(self, cluster: Cluster) -> None:
        shutil.rmtree(cluster.layout.etcd, ignore_errors=True)


AUDIT_POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        # Reads are many and change nothing; the nodes' own heartbeats and events would bury the rest.
        {"level": "None", "verbs": ["get", "list", "watch"]},
        {"level": "None", "userGroups": ["system:nodes"], "resources": [{"group": "coordination.k8s.io"}]},
        {"level": "None", "resources": [{"group": "authentication.k8s.io"}, {"group": "authorization.k8s.io"}]},
        {"level": "Metadata"},
    ],
}


class ApiServer(Component):
    """The API server, with RBAC, the node authorizer, Pod Security admission and an audit log of all writes."""

    name = "kube-apiserver"
    stage = Stage.API
    stop_seconds = 20.0

    def prepare(self, cluster: Cluster) -> None:
        pki.write_private(cluster.layout.config / "audit-policy.json", json.dumps(AUDIT_POLICY, indent=1))
        pki.write_kubeconfig(cluster.layout, cluster.layout.kubeconfig, "admin")

    def command(self, cluster: Cluster) -> Command:
        layout, keys = cluster.layout, cluster.layout.keys
        address = layout.nodes[0].address
        return Command(
            (
                program(cluster, "kube-apiserver"),
                f"--bind-address={address}",
                f"--advertise-address={address}",
                f"--secure-port={places.API_PORT}",
                f"--tls-cert-file={keys / 'kube-apiserver.crt'}",
                f"--tls-private-key-file={keys / 'kube-apiserver.key'}",
                f"--client-ca-file={keys / 'ca.crt'}",
                f"--etcd-servers=https://127.0.0.1:{places.ETCD_PORT}",
                f"--etcd-cafile={keys / 'etcd-ca.crt'}",
                f"--etcd-certfile={keys / 'etcd-client.crt'}",
                f"--etcd-keyfile={keys / 'etcd-client.key'}",
                f"--service-cluster-ip-range={places.SERVICE_RANGE}",
                f"--service-account-issuer=https://kubernetes.default.svc.{places.CLUSTER_DOMAIN}",
                f"--service-account-key-file={keys / 'service-accounts.pub'}",
                f"--service-account-signing-key-file={keys / 'service-accounts.key'}",
                f"--kubelet-client-certificate={keys / 'kubelet-client.crt'}",
                f"--kubelet-client-key={keys / 'kubelet-client.key'}",
                f"--kubelet-certificate-authority={keys / 'ca.crt'}",
                "--kubelet-preferred-address-types=InternalIP",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                f"--audit-policy-file={layout.config / 'audit-policy.json'}",
                f"--audit-log-path={layout.audit_log}",
                "--audit-log-maxsize=100",
                "--audit-log-maxbackup=2",
                f"--feature-gates={GATES}",
                "--runtime-config=scheduling.k8s.io/v1beta1=true",
                "--profiling=false",
            ),
            pki.inputs(layout, json.dumps(AUDIT_POLICY)),
        )

    def ready(self, cluster: Cluster) -> str:
        try:
            cluster.api().text("/readyz")
        except Exception as error:
            return f"the API server is not ready ({str(error).splitlines()[0] if str(error) else error!r})"
        return ""


class KubeletAccess(Component):
    """Lets the API server's own client certificate reach the kubelets, for logs and exec."""

    name = "kubelet-access"
    stage = Stage.CONTROL

    def ready(self, cluster: Cluster) -> str:
        found = cluster.api().find("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/kubeformer:kubelet-clients")
        return "" if found else "the API server may not read logs from kubelets"

    def prepare(self, cluster: Cluster) -> None:
        cluster.api().apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "kubeformer:kubelet-clients"},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "system:kubelet-api-admin",
                },
                "subjects": [
                    {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "kubeformer:kubelet-clients"}
                ],
            }
        )


class ControllerManager(Component):
    name = "kube-controller-manager"
    stage = Stage.CONTROL

    def prepare(self, cluster: Cluster) -> None:
        pki.write_kubeconfig(cluster.layout, _kubeconfig(cluster, self.name), self.name)

    def command(self, cluster: Cluster) -> Command:
        keys, kubeconfig = cluster.layout.keys, _kubeconfig(cluster, self.name)
        return Command(
            (
                program(cluster, self.name),
                f"--kubeconfig={kubeconfig}",
                f"--authentication-kubeconfig={kubeconfig}",
                f"--authorization-kubeconfig={kubeconfig}",
                "--bind-address=127.0.0.1",
                f"--secure-port={places.CONTROLLER_MANAGER_PORT}",
                f"--tls-cert-file={keys / f'{self.name}.crt'}",
                f"--tls-private-key-file={keys / f'{self.name}.key'}",
                f"--client-ca-file={keys / 'ca.crt'}",
                f"--root-ca-file={keys / 'ca.crt'}",
                f"--service-account-private-key-file={keys / 'service-accounts.key'}",
                f"--cluster-signing-cert-file={keys / 'ca.crt'}",
                f"--cluster-signing-key-file={keys / 'ca.key'}",
                "--use-service-account-credentials=true",
                # Without it, nobody takes the protecting finalizer off PodGroups, and their namespaces never end.
                f"--feature-gates={GATES}",
                # One instance: an election would only add 15 s to each start after a crash.
                "--leader-elect=false",
                "--kube-api-qps=100",
                "--kube-api-burst=200",
                "--profiling=false",
            ),
            pki.inputs(cluster.layout),
        )

    def ready(self, cluster: Cluster) -> str:
        return healthy(f"https://127.0.0.1:{places.CONTROLLER_MANAGER_PORT}/healthz")


class Scheduler(Component):
    name = "kube-scheduler"
    stage = Stage.CONTROL

    def prepare(self, cluster: Cluster) -> None:
        pki.write_kubeconfig(cluster.layout, _kubeconfig(cluster, self.name), self.name)

    def command(self, cluster: Cluster) -> Command:
        keys, kubeconfig = cluster.layout.keys, _kubeconfig(cluster, self.name)
        return Command(
            (
                program(cluster, self.name),
                f"--kubeconfig={kubeconfig}",
                f"--authentication-kubeconfig={kubeconfig}",
                f"--authorization-kubeconfig={kubeconfig}",
                "--bind-address=127.0.0.1",
                f"--secure-port={places.SCHEDULER_PORT}",
                f"--tls-cert-file={keys / f'{self.name}.crt'}",
                f"--tls-private-key-file={keys / f'{self.name}.key'}",
                f"--client-ca-file={keys / 'ca.crt'}",
                "--leader-elect=false",
                f"--feature-gates={GATES}",
                "--kube-api-qps=100",
                "--kube-api-burst=200",
                "--profiling=false",
            ),
            pki.inputs(cluster.layout),
        )

    def ready(self, cluster: Cluster) -> str:
        return healthy(f"https://127.0.0.1:{places.SCHEDULER_PORT}/healthz")


def _kubeconfig(cluster: Cluster, name: str) -> Path:
    return cluster.layout.config / f"{name}.kubeconfig"

"""CoreDNS: the names of Services and of pods behind headless Services. It runs in pods, as in any cluster."""

from __future__ import annotations

import socket
import struct
from typing import Any

from localcluster.base_images import coredns_image
from localcluster.components import Cluster, Component, Stage
from localcluster.layout import API_SERVICE_ADDRESS, CLUSTER_DOMAIN, DNS_SERVICE_ADDRESS

NAMESPACE = "kube-system"
LABELS = {"k8s-app": "kube-dns"}
PORT = 1053

COREFILE = f"""
.:{PORT} {{
    errors
    health :8080 {{
        lameduck 2s
    }}
    ready :8181
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }}
    forward . /etc/resolv.conf
    cache 5
    loop
    reload 10s
}}
"""


def manifests() -> list[dict[str, Any]]:
    """All objects, in the order of applying."""
    named = {"name": "coredns", "namespace": NAMESPACE}
    role = "system:coredns"
    probe = {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1, "failureThreshold": 3}
    container = {
        "name": "coredns",
        "image": coredns_image(),
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [
            {"name": "dns", "containerPort": PORT, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": PORT, "protocol": "TCP"},
        ],
        "resources": {"requests": {"cpu": "20m", "memory": "40Mi"}, "limits": {"memory": "170Mi"}},
        "readinessProbe": probe,
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    pod = {
        "serviceAccountName": "coredns",
        "dnsPolicy": "Default",
        "priorityClassName": "system-cluster-critical",
        "tolerations": [{"operator": "Exists"}],
        # One a node, so that a lost node takes no names with it.
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": LABELS},
            }
        ],
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": role},
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["endpoints", "services", "pods", "namespaces"],
                    "verbs": ["list", "watch"],
                },
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", **named}],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "data": {"Corefile": COREFILE}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": NAMESPACE, "labels": LABELS},
            "spec": {
                "clusterIP": DNS_SERVICE_ADDRESS,
                "selector": LABELS,
                "ports": [
                    {"name": "dns", "port": 53, "targetPort": PORT, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "targetPort": PORT, "protocol": "TCP"},
                ],
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {**named, "labels": LABELS},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": LABELS},
                "template": {"metadata": {"labels": LABELS}, "spec": pod},
            },
        },
    ]


class Dns(Component):
    """CoreDNS's objects; no process of this machine."""

    name = "dns"
    stage = Stage.ADDON
    ready_seconds = 120.0

    def prepare(self, cluster: Cluster) -> None:
        api = cluster.api()
        for manifest in manifests():
            api.apply(manifest)

    def ready(self, cluster: Cluster) -> str:
        return (
            ""
            if resolves(f"kubernetes.default.svc.{CLUSTER_DOMAIN}", API_SERVICE_ADDRESS)
            else "no name server answers"
        )


def query(name: str, number: int) -> bytes:
    """A DNS question for the IPv4 addresses of a name (RFC 1035, section 4)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


def resolves(name: str, address: str, server: str = DNS_SERVICE_ADDRESS, port: int = 53, seconds: float = 1.0) -> bool:
    """Asks the cluster's name server as a pod would, by its Service, whether a name has this address."""
    number = 0x6B66
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(seconds)
        try:
            client.sendto(query(name, number), (server, port))
            answer = client.recv(512)
        except OSError:
            return False
    return answer[:2] == number.to_bytes(2, "big") and socket.inet_aton(address) in answer[12:]

"""Keys, certificates and kubeconfigs of the cluster, made with the openssl program.

Two authorities: one for Kubernetes, one for etcd alone, so that no client of Kubernetes can speak to etcd.
Everything is made in a folder beside and moved into place at the end, so an interruption leaves nothing half-made.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster.errors import ClusterError
from localcluster.layout import API_SERVICE_ADDRESS, CLUSTER_DOMAIN, Layout, Node

DAYS = 3650
RENEW_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate to issue.

    Attributes:
        name: of the files `<name>.crt` and `<name>.key`.
        common_name: Kubernetes reads it as the user.
        organization: Kubernetes reads it as the group; may be empty.
        names: DNS names and addresses that it serves as ("DNS:..." and "IP:..."); none for a client.
        authority: name of the authority that signs it.
    """

    name: str
    common_name: str
    organization: str = ""
    names: tuple[str, ...] = ()
    authority: str = "ca"

    @property
    def subject(self) -> str:
        return (f"/O={self.organization}" if self.organization else "") + f"/CN={self.common_name}"

    @property
    def extensions(self) -> str:
        usage = "serverAuth,clientAuth" if self.names else "clientAuth"
        lines = [
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature",
            f"extendedKeyUsage={usage}",
        ]
        return "\n".join([*lines, *([f"subjectAltName={','.join(self.names)}"] if self.names else [])]) + "\n"


AUTHORITIES = ("ca", "etcd-ca")


def certificates(nodes: Sequence[Node]) -> tuple[Certificate, ...]:
    """All certificates of a cluster with these nodes."""
    service = tuple(
        f"DNS:{name}"
        for name in (
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            f"kubernetes.default.svc.{CLUSTER_DOMAIN}",
        )
    )
    server = (*service, "DNS:localhost", f"IP:{nodes[0].address}", f"IP:{API_SERVICE_ADDRESS}", "IP:127.0.0.1")
    local = ("DNS:localhost", "IP:127.0.0.1")
    return (
        Certificate("etcd", "etcd", names=local, authority="etcd-ca"),
        Certificate("etcd-client", "kube-apiserver", authority="etcd-ca"),
        Certificate("kube-apiserver", "kube-apiserver", names=server),
        Certificate("kubelet-client", "kube-apiserver-kubelet-client", "kubeformer:kubelet-clients"),
        Certificate("admin", "kubeformer-admin", "system:masters"),
        Certificate("kube-controller-manager", "system:kube-controller-manager", names=local),
        Certificate("kube-scheduler", "system:kube-scheduler", names=local),
        Certificate("kube-proxy", "system:kube-proxy"),
        *(
            Certificate(
                node.name, f"system:node:{node.name}", "system:nodes", (f"DNS:{node.name}", f"IP:{node.address}")
            )
            for node in nodes
        ),
    )


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(
            f"openssl {arguments[0]} failed: {done.stderr.strip().splitlines()[-1:]}; is openssl 3 installed?"
        )


def _key_options() -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")


def make_authority(folder: Path, name: str) -> None:
    _openssl(
        "req", "-x509", *_key_options(), "-days", str(DAYS), "-subj", f"/CN=kubeformer-{name}",
        "-addext", "basicConstraints=critical,CA:TRUE",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
        "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt"),
    )  # fmt: skip


def make_certificate(folder: Path, certificate: Certificate) -> None:
    base = str(folder / certificate.name)
    authority = str(folder / certificate.authority)
    Path(f"{base}.ext").write_text(certificate.extensions)
    _openssl(
        "req", "-new", *_key_options(), "-subj", certificate.subject, "-keyout", f"{base}.key", "-out", f"{base}.csr"
    )
    _openssl(
        "x509", "-req", "-in", f"{base}.csr", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key",
        "-days", str(DAYS), "-extfile", f"{base}.ext", "-out", f"{base}.crt",
    )  # fmt: skip
    Path(f"{base}.ext").unlink()
    Path(f"{base}.csr").unlink()


def valid(keys: Path, nodes: Sequence[Node]) -> bool:
    """Whether all certificates are there and stay valid for another month."""
    for name in (*AUTHORITIES, *(certificate.name for certificate in certificates(nodes))):
        if not (keys / f"{name}.key").exists():
            return False
        command = ["openssl", "x509", "-in", str(keys / f"{name}.crt"), "-noout", "-checkend", str(RENEW_SECONDS)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return False
    return (keys / "service-accounts.key").exists()


def ensure_keys(layout: Layout) -> bool:
    """Makes all keys, unless they are there. True if they were made: then everything that runs has to be restarted."""
    if valid(layout.keys, layout.nodes):
        return False
    temporary = layout.keys.with_suffix(".new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True, mode=0o700)
    for name in AUTHORITIES:
        make_authority(temporary, name)
    for certificate in certificates(layout.nodes):
        make_certificate(temporary, certificate)
    _openssl("genrsa", "-out", str(temporary / "service-accounts.key"), "2048")
    public = str(temporary / "service-accounts.pub")
    _openssl("rsa", "-in", str(temporary / "service-accounts.key"), "-pubout", "-out", public)
    for path in temporary.iterdir():
        path.chmod(0o600)
    shutil.rmtree(layout.keys, ignore_errors=True)
    temporary.rename(layout.keys)
    return True


INPUTS_VARIABLE = "KUBEFORMER_INPUTS"
"""Carries a digest of what a process reads at its start, so that `up` starts it again when that has changed."""


def inputs(layout: Layout, *texts: str) -> dict[str, str]:
    """The variable for a process that uses the cluster's keys, and was configured with these texts."""
    digest = hashlib.sha256()
    for name in AUTHORITIES:
        digest.update((layout.keys / f"{name}.crt").read_bytes())
    for text in texts:
        digest.update(text.encode())
    return {INPUTS_VARIABLE: digest.hexdigest()[:16]}


def kubeconfig_text(server: str, ca: bytes, certificate: bytes, key: bytes, user: str) -> str:
    """A kubeconfig that carries its certificates, so that it can be copied."""
    encoded = [base64.b64encode(part).decode() for part in (ca, certificate, key)]
    return f"""apiVersion: v1
kind: Config
current-context: kubeformer
clusters:
- name: kubeformer
  cluster:
    server: {server}
    certificate-authority-data: {encoded[0]}
contexts:
- name: kubeformer
  context:
    cluster: kubeformer
    user: {user}
users:
- name: {user}
  user:
    client-certificate-data: {encoded[1]}
    client-key-data: {encoded[2]}
"""


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def write_kubeconfig(layout: Layout, path: Path, name: str) -> None:
    """Writes a kubeconfig for the holder of a certificate, if it differs from what is there."""
    ca, certificate, key = ((layout.keys / file).read_bytes() for file in ("ca.crt", f"{name}.crt", f"{name}.key"))
    text = kubeconfig_text(layout.api_url, ca, certificate, key, name)
    if not path.exists() or path.read_text() != text:
        write_private(path, text)

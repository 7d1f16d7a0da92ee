"""Keys and certificates, made with the real openssl."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from localcluster import pki
from localcluster.errors import ClusterError
from localcluster.kube import Api
from localcluster.layout import Layout


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    found = Layout(tmp_path_factory.mktemp("pki"))
    assert pki.ensure_keys(found)
    return found


def _openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True).stdout


def test_keys_are_made_once(layout: Layout) -> None:
    before = {path.name: path.read_bytes() for path in layout.keys.iterdir()}
    assert not pki.ensure_keys(layout)
    assert {path.name: path.read_bytes() for path in layout.keys.iterdir()} == before


def test_every_certificate_is_signed_by_its_own_authority_and_no_other(layout: Layout) -> None:
    for certificate in pki.certificates(layout.nodes):
        (other,) = set(pki.AUTHORITIES) - {certificate.authority}
        file = str(layout.keys / f"{certificate.name}.crt")
        _openssl("verify", "-CAfile", str(layout.keys / f"{certificate.authority}.crt"), file)
        with pytest.raises(subprocess.CalledProcessError):
            _openssl("verify", "-CAfile", str(layout.keys / f"{other}.crt"), file)


def test_a_kubelet_serves_under_its_nodes_address_and_is_known_as_its_node(layout: Layout) -> None:
    for node in layout.nodes:
        text = _openssl("x509", "-in", str(layout.keys / f"{node.name}.crt"), "-noout", "-text")
        assert f"IP Address:{node.address}" in text
        assert f"O = system:nodes, CN = system:node:{node.name}" in text


def test_nobody_else_may_read_the_keys(layout: Layout) -> None:
    assert {path.stat().st_mode & 0o077 for path in layout.keys.iterdir()} == {0}
    assert layout.keys.stat().st_mode & 0o077 == 0


def test_an_interruption_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path)
    made = []

    def interrupted(folder: Path, name: str) -> None:
        made.append(name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pki, "make_authority", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pki.ensure_keys(layout)
    assert made == ["ca"]
    assert not layout.keys.exists()


def test_a_kubeconfig_is_complete_and_private(layout: Layout) -> None:
    pki.write_kubeconfig(layout, layout.kubeconfig, "admin")
    assert layout.kubeconfig.stat().st_mode & 0o077 == 0
    api = Api.from_kubeconfig(layout.kubeconfig)
    assert api.url == layout.api_url
    assert isinstance(api.tls, ssl.SSLContext)
    assert api.tls.get_ca_certs()[0]["subject"] == ((("commonName", "kubeformer-ca"),),)


def test_a_digest_of_inputs_changes_with_keys_and_texts(layout: Layout, tmp_path: Path) -> None:
    one = pki.inputs(layout, "a")
    assert pki.inputs(layout, "a") == one
    assert pki.inputs(layout, "b") != one
    other = Layout(tmp_path)
    other.keys.mkdir(parents=True)
    for name in pki.AUTHORITIES:
        (other.keys / f"{name}.crt").write_text("renewed")
    assert pki.inputs(other, "a") != one


def test_what_openssl_says_reaches_the_user(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="openssl x509 failed"):
        pki.make_certificate(tmp_path, pki.Certificate("x", "x", authority="not-there"))

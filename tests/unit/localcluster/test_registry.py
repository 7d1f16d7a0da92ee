"""Names of images on the nodes' registry, and what an image archive says about itself."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from localcluster import registry
from localcluster.components import Cluster
from localcluster.errors import ClusterError
from localcluster.layout import Layout
from localcluster.registry import archive_transport, forget_old, holds, name_on_nodes
from localcluster.report import Report


def archive(path: Path, **files: object) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, value in files.items():
            content = json.dumps(value).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("given", "on_nodes"),
    [
        ("trainer:3", "127.0.0.1:5001/trainer:3"),
        ("trainer", "127.0.0.1:5001/trainer:latest"),
        ("team/trainer:3", "127.0.0.1:5001/team/trainer:3"),
        ("docker.io/library/trainer:3", "127.0.0.1:5001/library/trainer:3"),
        ("localhost/trainer:3", "127.0.0.1:5001/trainer:3"),
        ("registry:5000/trainer", "127.0.0.1:5001/trainer:latest"),
    ],
)
def test_an_image_keeps_its_path_and_changes_its_host(given: str, on_nodes: str) -> None:
    assert name_on_nodes(given) == on_nodes


def test_both_kinds_of_archives_are_told_apart_and_say_their_name(tmp_path: Path) -> None:
    saved = archive(tmp_path / "a.tar", **{"manifest.json": [{"RepoTags": ["trainer:3"]}]})
    assert archive_transport(saved) == ("docker-archive", "trainer:3")
    named = {"manifests": [{"annotations": {"org.opencontainers.image.ref.name": "trainer:4"}}]}
    assert archive_transport(archive(tmp_path / "b.tar", **{"index.json": named})) == ("oci-archive", "trainer:4")


def test_an_archive_without_a_name_is_one_all_the_same(tmp_path: Path) -> None:
    assert archive_transport(archive(tmp_path / "a.tar", **{"manifest.json": [{"RepoTags": None}]})) == (
        "docker-archive",
        "",
    )
    assert archive_transport(archive(tmp_path / "b.tar", **{"index.json": {"manifests": [{}]}})) == ("oci-archive", "")


def test_other_files_are_refused_in_one_line_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no tar")
    other = archive(tmp_path / "other.tar", **{"data.json": {}})
    for path in (tmp_path / "text.tar", other, tmp_path / "absent.tar"):
        with pytest.raises(ClusterError, match=r"docker save") as caught:
            archive_transport(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_newest_tags_stay(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for age, tag in enumerate(("c", "a", "b")):
        link = layout.registry / f"docker/registry/v2/repositories/trainer/_manifests/tags/{tag}/current/link"
        link.parent.mkdir(parents=True)
        link.write_text("sha256:abc")
        os.utime(link, (1000 + age, 1000 + age))
    assert forget_old(layout, "trainer", kept=2) == ["c"]
    assert [holds(layout, "trainer", tag) for tag in "abc"] == [True, True, False]
    assert forget_old(layout, "never-seen") == []


def test_what_the_registry_holds_is_read_from_its_files(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert not holds(layout, "trainer", "3")
    link = layout.registry / "docker/registry/v2/repositories/trainer/_manifests/tags/3/current/link"
    link.parent.mkdir(parents=True)
    link.write_text("sha256:abc")
    assert holds(layout, "trainer", "3")
    assert not holds(layout, "trainer", "4")


def test_a_stranger_on_the_registrys_port_is_named_and_never_pushed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "taken", lambda port, address: True)
    monkeypatch.setattr(registry, "holder_of", lambda port: 1)
    with pytest.raises(ClusterError, match=r"5001.*process 1\b"):
        registry.require_port(Cluster(Layout(tmp_path), "local", {}, Report()))

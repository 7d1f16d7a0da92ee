"""Programs come from the machine, from verified releases, or from pinned modules; never in another version."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from localcluster import binaries
from localcluster.binaries import KUBERNETES, MODULES, PARTS, build_command, expected_digest, from_machine, from_release
from localcluster.errors import ClusterError
from localcluster.report import Report
from tests.unit.localcluster.builders import cluster_in

ETCD = PARTS["etcd"]
QUIET = Report(io.StringIO())


def _archive(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _web(pages: Mapping[str, bytes]) -> binaries.Fetch:
    def read(url: str, seconds: float) -> bytes:
        if url not in pages:
            raise OSError(f"no answer from {url}")
        return pages[url]

    return read


@pytest.mark.parametrize("name", sorted(PARTS))
def test_every_part_has_a_pinned_version_and_checksums_of_all_its_modules(name: str) -> None:
    part = PARTS[name]
    version = binaries.version_of(part)
    assert f"{part.module} {version} h1:" in (MODULES / name / "go.sum").read_text()


def test_the_folder_of_a_part_changes_with_what_its_modules_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = binaries.folder_of(ETCD, tmp_path)
    copy = tmp_path / "modules" / "etcd"
    copy.mkdir(parents=True)
    for file in ("go.mod", "go.sum"):
        (copy / file).write_bytes((MODULES / "etcd" / file).read_bytes() + b"\n")
    monkeypatch.setattr(binaries, "MODULES", copy.parent)
    assert binaries.folder_of(ETCD, tmp_path) != before


def test_kubernetes_is_told_its_version_when_it_is_linked() -> None:
    command = build_command(PARTS["kubernetes"], "v1.37.2", Path("/out"))
    flags = command[command.index("-ldflags") + 1]
    assert "-X k8s.io/component-base/version.gitVersion=v1.37.2" in flags
    assert "-X k8s.io/client-go/pkg/version.gitMinor=37" in flags
    assert command[command.index("-o") + 1] == "/out/"
    assert command[-len(KUBERNETES) :] == [f"k8s.io/kubernetes/cmd/{name}" for name in KUBERNETES]


def test_a_single_program_is_built_under_its_own_name() -> None:
    command = build_command(ETCD, "v3.6.8", Path("/out"))
    assert command[command.index("-o") + 1] == "/out/etcd"


def _program(folder: Path, name: str, says: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / name).chmod(0o755)


def test_a_program_on_the_machine_is_taken_if_it_is_of_the_pinned_version(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    _program(tmp_path / "assets", "etcd", "etcd Version: 3.6.8")
    _program(tmp_path / "path", "etcd", "etcd Version: 3.5.1")
    path = f"{tmp_path / 'path'}:/usr/bin:/bin"
    environment = {"KUBEBUILDER_ASSETS": str(tmp_path / "assets"), "PATH": path}
    assert from_machine(ETCD, "v3.6.8", target, environment, QUIET)
    assert (target / "etcd").read_text() == (tmp_path / "assets" / "etcd").read_text()


@pytest.mark.parametrize(
    "says", ["etcd Version: 3.6.80", "etcd Version: 13.6.8", "etcd Version: 3.6.8.1", "no version"]
)
def test_a_program_of_another_version_is_not_taken(tmp_path: Path, says: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    _program(tmp_path / "path", "etcd", says)
    assert not from_machine(ETCD, "v3.6.8", target, {"PATH": f"{tmp_path / 'path'}:/usr/bin:/bin"}, QUIET)
    assert list(target.iterdir()) == []


def test_a_release_is_unpacked_when_its_checksum_is_the_published_one(tmp_path: Path) -> None:
    (download,) = ETCD.downloads("v3.6.8", binaries.architecture())
    archive = _archive(next(iter(download.members)), b"the program")
    host = binaries.OFFICIAL_HOSTS["etcd"]
    name = Path(download.path).name
    sums = f"{'0' * 64}  other.tar.gz\n{hashlib.sha256(archive).hexdigest()}  {name}\n".encode()
    web = _web({host + download.path: archive, host + download.checksum: sums})
    assert from_release(ETCD, "v3.6.8", tmp_path, QUIET, web)
    assert (tmp_path / "etcd").read_bytes() == b"the program"
    assert (tmp_path / "etcd").stat().st_mode & 0o111


def test_a_release_that_is_not_the_published_one_is_refused_and_not_written(tmp_path: Path) -> None:
    (download,) = ETCD.downloads("v3.6.8", binaries.architecture())
    host = binaries.OFFICIAL_HOSTS["etcd"]
    sums = f"{hashlib.sha256(b'the real one').hexdigest()}  {Path(download.path).name}\n".encode()
    web = _web({host + download.path: _archive("etcd", b"another"), host + download.checksum: sums})
    with pytest.raises(ClusterError, match="does not have its published checksum"):
        from_release(ETCD, "v3.6.8", tmp_path, QUIET, web)
    assert list(tmp_path.iterdir()) == []


def test_a_release_whose_checksum_is_not_published_is_refused(tmp_path: Path) -> None:
    (download,) = ETCD.downloads("v3.6.8", binaries.architecture())
    host = binaries.OFFICIAL_HOSTS["etcd"]
    web = _web({host + download.path: b"x", host + download.checksum: b"nothing about it"})
    with pytest.raises(ClusterError, match="published checksum"):
        from_release(ETCD, "v3.6.8", tmp_path, QUIET, web)


def test_hosts_that_do_not_answer_mean_no_release(tmp_path: Path) -> None:
    assert not from_release(PARTS["kubernetes"], "v1.37.2", tmp_path, QUIET, _web({}))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_a_program_itself_gets_the_programs_name(tmp_path: Path) -> None:
    part = PARTS["kind"]
    (download,) = part.downloads("v0.33.0", binaries.architecture())
    host = binaries.OFFICIAL_HOSTS["kind"]
    sums = f"{hashlib.sha256(b'kind').hexdigest()}  {Path(download.path).name}\n".encode()
    assert from_release(
        part, "v0.33.0", tmp_path, QUIET, _web({host + download.path: b"kind", host + download.checksum: sums})
    )
    assert [path.name for path in tmp_path.iterdir()] == ["kind"]


def test_a_checksum_file_holds_a_digest_alone_or_a_list() -> None:
    digest = "ab" * 32
    assert expected_digest(digest, "anything") == digest
    assert expected_digest(f"{digest}  ./dist/file\n", "file") == digest
    assert expected_digest(f"{digest} *file\n", "file") == digest
    assert expected_digest(f"{digest}  other\n", "file") == ""


def test_without_go_and_without_a_release_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "from_release", lambda *arguments: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"Go is missing.*install Go 1\.26"):
        binaries.ensure(cluster_in(tmp_path), "etcd")


def test_a_go_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "bin", "go", "go1.19.8")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ClusterError, match=r"too old \(go1\.19\.8\)"):
        binaries.require_go()


def test_a_program_that_is_not_there_yet_is_asked_for_by_its_verb(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="python -m localcluster binaries"):
        binaries.program(cluster_in(tmp_path), "etcd")

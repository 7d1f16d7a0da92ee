"""Image archives: digests are right, and equal files give equal archives."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

from localcluster import oci


def _contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {entry.name: file.read() for entry in tar if (file := tar.extractfile(entry))}


def test_every_blob_is_named_by_its_digest_and_the_chain_leads_to_the_files(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"\x7fELF")
    oci.archive(tmp_path / "a.tar", "example.local/a:1", {"bin/a": tmp_path / "program"}, ["/bin/a"], "amd64")
    parts = _contents(tmp_path / "a.tar")
    for name, content in parts.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(content).hexdigest() == name.rpartition("/")[2]

    def blob(descriptor: dict[str, str]) -> bytes:
        return parts["blobs/" + descriptor["digest"].replace(":", "/")]

    (entry,) = json.loads(parts["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "example.local/a:1"
    manifest = json.loads(blob(entry))
    config = json.loads(blob(manifest["config"]))
    assert config["config"]["Entrypoint"] == ["/bin/a"]
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
    (tmp_path / "layer.tar").write_bytes(blob(manifest["layers"][0]))
    assert _contents(tmp_path / "layer.tar") == {"bin/a": b"\x7fELF"}


def test_equal_files_give_equal_archives(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"x")
    for name in ("a.tar", "b.tar"):
        oci.archive(tmp_path / name, "example.local/a:1", {"a": tmp_path / "program"}, ["/a"], "amd64")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar", "program"]

"""Writes container images of a few static files as OCI archives, without any tool.

    archive(path, "kubeformer.local/pause:1", {"pause": Path(...)}, ["/pause"])

Equal files give equal archives: times and owners are fixed.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def _layer(files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, source in sorted(files.items()):
            content = source.read_bytes()
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _descriptor(media: str, content: bytes, **more: Any) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {
        "mediaType": f"application/vnd.oci.image.{media}",
        "digest": f"sha256:{digest}",
        "size": len(content),
        **more,
    }


def archive(
    path: Path,
    name: str,
    files: Mapping[str, Path],
    entrypoint: Sequence[str],
    architecture: str,
    user: str = "65532:65532",
) -> None:
    """Writes an image of one layer.

    Args:
        path: of the archive; written whole or not at all.
        name: the image's name with its tag.
        files: path in the image to the file here; all become executable.
        entrypoint: the command of its containers.
        architecture: in Go's words, such as "amd64".
        user: who its containers run as.
    """
    layer = _layer(files)
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": list(entrypoint), "User": user, "Env": ["PATH=/"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    )
    layer_entry = _descriptor("layer.v1.tar", layer)
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("config.v1+json", config),
            "layers": [layer_entry],
        }
    )
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    platform = {"os": "linux", "architecture": architecture}
    entry = _descriptor("manifest.v1+json", manifest, annotations=names, platform=platform)
    parts = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [entry]}),
    }
    for content in (layer, config, manifest):
        parts[f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"] = content
    temporary = path.with_name(f"{path.name}.new")
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for part, content in parts.items():
            info = tarfile.TarInfo(part)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    temporary.replace(path)

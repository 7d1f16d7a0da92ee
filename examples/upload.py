"""Files onto a claim: `python -m examples.upload pvc://CLAIM/PATH FILE... [-n NAMESPACE]`, on any cluster.

A short-lived pod mounts the claim; one tar stream through `kubectl exec` carries the files, each written beside its
name, compared by SHA-256, and renamed. What is there already is not sent again, so an upload that was interrupted
is simply started once more. A FILE that is a directory gives all files in it.
"""

import argparse
import hashlib
import json
import subprocess
import tarfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from examples.kubectl import Json, Kubectl, KubectlError

MOUNT = "/mnt/claim"
POD_SECONDS = 900
TRIES = 3

# In the pod: print the digests of the files whose names come in, one a line.
LIST = """
import hashlib, json, pathlib, sys
root, names = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
print(json.dumps({name: digest(root / name) for name in names if (root / name).is_file()}))
"""

# In the pod: take a tar stream, and put every file in place only once it is whole.
RECEIVE = """
import hashlib, os, pathlib, sys, tarfile
root = pathlib.Path(sys.argv[1])
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
    for member in tar:
        target = root / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name("." + target.name + ".incomplete")
        source, wanted, digest = tar.extractfile(member), member.pax_headers["sha256"], hashlib.sha256()
        with partial.open("wb") as file:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != wanted:
            sys.exit(f"{member.name} arrived damaged")
        partial.rename(target)
"""


def upload(kubectl: Kubectl, namespace: str, claim: str, files: dict[str, Path], image: str) -> int:
    """Put files (path on the claim: local file) onto a claim; bytes that had to be sent. Raises KubectlError."""
    digests = {name: sha256(path) for name, path in files.items()}
    pod = f"upload-{claim}"[:63]
    with _Pod(kubectl, namespace, pod, claim, image):
        for attempt in range(1, TRIES + 1):
            there = json.loads(
                kubectl.run("exec", "-n", namespace, pod, "--", "python", "-c", LIST, MOUNT, json.dumps(list(files)))
            )
            missing = [name for name in files if there.get(name) != digests[name]]
            if not missing:
                return sum(files[name].stat().st_size for name in files) if attempt > 1 else 0
            try:
                _send(kubectl, namespace, pod, {name: files[name] for name in missing}, digests)
            except KubectlError:
                if attempt == TRIES:
                    raise
                time.sleep(2.0)
        raise KubectlError(f"{', '.join(missing)} did not arrive on {claim} whole, in {TRIES} tries")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _send(kubectl: Kubectl, namespace: str, pod: str, files: dict[str, Path], digests: dict[str, str]) -> None:
    command = kubectl.command("exec", "-i", "-n", namespace, pod, "--", "python", "-c", RECEIVE, MOUNT)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=kubectl.environment
    )
    assert process.stdin is not None
    assert process.stderr is not None
    said: list[bytes] = []
    reader = threading.Thread(target=_collect, args=(process.stderr, said))
    reader.start()
    try:
        with tarfile.open(fileobj=process.stdin, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for name, path in files.items():
                member = tarfile.TarInfo(name)
                member.size = path.stat().st_size
                member.pax_headers = {"sha256": digests[name]}
                with path.open("rb") as file:
                    tar.addfile(member, file)
        process.stdin.close()
    except BrokenPipeError:
        pass  # the other end has said why
    code = process.wait()
    reader.join()
    if code:
        raise KubectlError(b"".join(said).decode(errors="replace").strip() or f"kubectl exec ended with {code}")


def _collect(stream: IO[bytes], said: list[bytes]) -> None:
    said.extend(stream)


class _Pod:
    """A pod that only waits, with a claim mounted; gone when the block ends."""

    def __init__(self, kubectl: Kubectl, namespace: str, name: str, claim: str, image: str) -> None:
        self._kubectl, self._namespace, self._name = kubectl, namespace, name
        self._body = manifest(namespace, name, claim, image)

    def __enter__(self) -> None:
        self._delete()  # what an interrupted upload left
        self._kubectl.apply_object(self._body)
        deadline = time.monotonic() + 300
        while True:
            pod = self._kubectl.get("pod", self._name, self._namespace) or {}
            phase = pod.get("status", {}).get("phase")
            if phase == "Running":
                return
            if time.monotonic() > deadline or phase in ("Failed", "Succeeded"):
                raise KubectlError(f"the pod {self._namespace}/{self._name} does not start: see kubectl describe")
            time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        self._delete()

    def _delete(self) -> None:
        self._kubectl.run(
            "delete", "pod", self._name, "-n", self._namespace, "--ignore-not-found", "--grace-period=1", "--wait=true"
        )


def manifest(namespace: str, name: str, claim: str, image: str) -> Json:
    """The pod, fit for the Pod Security standard `restricted`."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": "upload"}},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": POD_SECONDS,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "upload",
                    "image": image,
                    "command": ["python", "-c", f"import time; time.sleep({POD_SECONDS})"],
                    "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "claim", "mountPath": MOUNT}],
                }
            ],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }


def operator_image(kubectl: Kubectl) -> str:
    """The light image that the installation runs: it has Python, and the nodes have it already."""
    selector = "app.kubernetes.io/name=kubeformer,app.kubernetes.io/component=operator"
    found = kubectl.json("get", "deployments", "-A", "-l", selector)["items"]
    if not found:
        raise SystemExit(
            "Kubeformer is not installed in this cluster: run `make demo`, or helm install helm/kubeformer"
        )
    image = found[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert isinstance(image, str)
    return image


def targets(directory: str, paths: Sequence[Path]) -> dict[str, Path]:
    """Path on the claim of every file, the files in directories included."""
    found: dict[str, Path] = {}
    for path in paths:
        inside = [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path]
        for file in inside:
            name = file.relative_to(path) if path.is_dir() else Path(file.name)
            found[str(Path(directory) / name)] = file
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("uri", help="pvc://CLAIM/DIRECTORY")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("-n", "--namespace", default="default")
    options = parser.parse_args()
    scheme, _, rest = options.uri.partition("://")
    claim, _, directory = rest.partition("/")
    if scheme != "pvc" or not claim:
        parser.error(f"{options.uri} is no claim: write pvc://CLAIM or pvc://CLAIM/DIRECTORY")
    missing = [str(path) for path in options.paths if not path.exists()]
    if missing:
        parser.error(f"{', '.join(missing)}: no such file")
    kubectl = Kubectl()
    files = targets(directory, options.paths)
    try:
        sent = upload(kubectl, options.namespace, claim, files, operator_image(kubectl))
    except KubectlError as error:
        raise SystemExit(str(error)) from error
    print(f"{len(files)} file(s) on {options.uri}, {sent / 1e6:.1f} MB sent")


if __name__ == "__main__":
    main()

"""Finds, downloads or builds the programs of the cluster, at the versions that `modules/*/go.mod` pin.

Sources, in this order: PATH or KUBEBUILDER_ASSETS if the version is the pinned one; the official release downloads,
checksums verified, if their hosts answer quickly; otherwise `go build` of the pinned modules. All of it ends up in
`<cache>/bin/<part>-<version>-<pins>/`, where <pins> is a digest of go.mod and go.sum.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from localcluster.components import Cluster
from localcluster.errors import ClusterError
from localcluster.report import Report

MODULES = Path(__file__).resolve().parent / "modules"

OFFICIAL_HOSTS: Mapping[str, str] = {
    "kubernetes": "https://dl.k8s.io",
    "etcd": "https://github.com",
    "coredns": "https://github.com",
    "helm": "https://get.helm.sh",
    "kind": "https://kind.sigs.k8s.io",
}
"""Where the projects publish their releases."""

PROBE_SECONDS = 3.0

Fetch = Callable[[str, float], bytes]
"""Reads a URL within some seconds; raises OSError."""


@dataclass(frozen=True, slots=True)
class Download:
    """A published file.

    Attributes:
        path: of the file, below the host.
        checksum: path of the file with its SHA-256.
        members: name in the archive to program; with "" as name, the file itself is the program.
    """

    path: str
    checksum: str
    members: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """Programs that come from one module.

    Attributes:
        name: the folder in `modules/`.
        module: the Go module whose version is the part's version.
        packages: program to Go package.
        variables: Go variables that are set when linking; "{version}", "{major}" and "{minor}" are filled in.
        ask: program to the arguments that make it print its version.
        downloads: what is published for a version and an architecture.
    """

    name: str
    module: str
    packages: Mapping[str, str]
    variables: Mapping[str, str]
    ask: tuple[str, ...]
    downloads: Callable[[str, str], tuple[Download, ...]]


def _kubernetes_downloads(version: str, arch: str) -> tuple[Download, ...]:
    root = f"/release/{version}/bin/linux/{arch}"
    return tuple(Download(f"{root}/{name}", f"{root}/{name}.sha256", {"": name}) for name in KUBERNETES)


def _etcd_downloads(version: str, arch: str) -> tuple[Download, ...]:
    root, name = f"/etcd-io/etcd/releases/download/{version}", f"etcd-{version}-linux-{arch}"
    return (Download(f"{root}/{name}.tar.gz", f"{root}/SHA256SUMS", {f"{name}/etcd": "etcd"}),)


def _coredns_downloads(version: str, arch: str) -> tuple[Download, ...]:
    file = f"/coredns/coredns/releases/download/{version}/coredns_{version.removeprefix('v')}_linux_{arch}.tgz"
    return (Download(file, f"{file}.sha256", {"coredns": "coredns"}),)


def _helm_downloads(version: str, arch: str) -> tuple[Download, ...]:
    file = f"/helm-{version}-linux-{arch}.tar.gz"
    return (Download(file, f"{file}.sha256sum", {f"linux-{arch}/helm": "helm"}),)


def _kind_downloads(version: str, arch: str) -> tuple[Download, ...]:
    file = f"/dl/{version}/kind-linux-{arch}"
    return (Download(file, f"{file}.sha256sum", {"": "kind"}),)


KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")

PARTS: Mapping[str, Part] = {
    part.name: part
    for part in (
        Part(
            "kubernetes",
            "k8s.io/kubernetes",
            {name: f"k8s.io/kubernetes/cmd/{name}" for name in KUBERNETES},
            {
                f"{package}.{variable}": value
                for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
                for variable, value in {
                    "gitVersion": "{version}",
                    "gitMajor": "{major}",
                    "gitMinor": "{minor}",
                    "gitTreeState": "clean",
                }.items()
            },
            ("--version",),
            _kubernetes_downloads,
        ),
        Part(
            "etcd",
            "go.etcd.io/etcd/server/v3",
            {"etcd": "go.etcd.io/etcd/server/v3"},
            {},
            ("--version",),
            _etcd_downloads,
        ),
        Part(
            "coredns",
            "github.com/coredns/coredns",
            {"coredns": "github.com/coredns/coredns"},
            {"github.com/coredns/coredns/coremain.GitCommit": "{version}"},
            ("-version",),
            _coredns_downloads,
        ),
        Part(
            "helm",
            "helm.sh/helm/v4",
            {"helm": "helm.sh/helm/v4/cmd/helm"},
            {"helm.sh/helm/v4/internal/version.version": "{version}"},
            ("version", "--short"),
            _helm_downloads,
        ),
        Part("kind", "sigs.k8s.io/kind", {"kind": "sigs.k8s.io/kind"}, {}, ("version",), _kind_downloads),
        Part(  # an S3 server, for tests; always built: there is no need of a release
            "versitygw",
            "github.com/versity/versitygw",
            {"versitygw": "github.com/versity/versitygw/cmd/versitygw"},
            {"main.Version": "{version}"},
            ("--version",),
            lambda version, arch: (),
        ),
    )
}


def pinned_version(go_mod: str, module: str) -> str:
    """The version of a module that a go.mod requires."""
    match = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if match is None:
        raise ClusterError(
            f"No version of {module} is pinned in its go.mod; run `go get {module}@VERSION` in that folder."
        )
    return match[1]


def version_of(part: Part) -> str:
    return pinned_version((MODULES / part.name / "go.mod").read_text(), part.module)


def folder_of(part: Part, binaries: Path) -> Path:
    """Where the part's programs of the pinned version belong."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((MODULES / part.name / name).read_bytes())
    return binaries / f"{part.name}-{version_of(part)}-{digest.hexdigest()[:8]}"


def program(cluster: Cluster, name: str) -> str:
    """The path of a program that `ensure` brought.

    Raises:
        ClusterError: if it is not there yet.
    """
    for part in PARTS.values():
        if name in part.packages:
            path = folder_of(part, cluster.layout.binaries) / name
            if path.exists():
                return str(path)
    raise ClusterError(f"{name} is not in the cache; run `python -m localcluster binaries`.")


def ensure(cluster: Cluster, *names: str) -> None:
    """Brings the parts' programs into the cache: from the machine, from their releases, or built.

    Raises:
        ClusterError: if none of it works.
    """
    for name in names:
        part = PARTS[name]
        folder = folder_of(part, cluster.layout.binaries)
        with _alone(cluster.layout.binaries, name):
            if all((folder / program_name).exists() for program_name in part.packages):
                continue
            temporary = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            version = version_of(part)
            if not (
                from_machine(part, version, temporary, cluster.environment, cluster.report)
                or from_release(part, version, temporary, cluster.report)
            ):
                build(part, version, temporary, cluster.report)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)


@contextlib.contextmanager
def _alone(binaries: Path, name: str) -> Iterator[None]:
    """Waits until nobody else brings this part: `binaries` may run beside `up`."""
    binaries.mkdir(parents=True, exist_ok=True)
    with open(binaries / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def says_version(path: str, part: Part, version: str) -> bool:
    """Whether a program says that it is of this version."""
    try:
        done = subprocess.run([path, *part.ask], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return (
        re.search(rf"(?<![\d.]){re.escape(version.removeprefix('v'))}(?![\d.])", done.stdout + done.stderr) is not None
    )


def from_machine(part: Part, version: str, folder: Path, environment: Mapping[str, str], report: Report) -> bool:
    """Copies the part's programs into the folder if all of them are on the machine in this version."""
    search = os.pathsep.join(filter(None, (environment.get("KUBEBUILDER_ASSETS", ""), environment.get("PATH", ""))))
    found = {name: shutil.which(name, path=search) for name in part.packages}
    paths = {name: path for name, path in found.items() if path and says_version(path, part, version)}
    if len(paths) < len(found):
        return False
    for name, path in paths.items():
        shutil.copy2(Path(path).resolve(), folder / name)
    report.say(
        f"         {part.name} {version}: taken from {', '.join(sorted({str(Path(p).parent) for p in paths.values()}))}"
    )
    return True


def fetch(url: str, seconds: float) -> bytes:
    """Reads a URL."""
    with urllib.request.urlopen(url, timeout=seconds) as response:
        data: bytes = response.read()
        return data


def architecture() -> str:
    """Go's name for this machine's processor."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def expected_digest(checksums: str, file: str) -> str:
    """The SHA-256 of a file, from a file with it alone or a list of `digest  name` lines; "" if it is not named."""
    for line in checksums.splitlines():
        words = line.split()
        if (
            words
            and re.fullmatch(r"[0-9a-fA-F]{64}", words[0])
            and (len(words) == 1 or Path(words[-1].lstrip("*")).name == file)
        ):
            return words[0].lower()
    return ""


def from_release(part: Part, version: str, folder: Path, report: Report, read: Fetch = fetch) -> bool:
    """Downloads the part's programs. False if none are published or the host does not answer; nothing was written.

    Raises:
        ClusterError: if a file is not the one that was published.
    """
    downloads = part.downloads(version, architecture())
    if not downloads:
        return False
    host = OFFICIAL_HOSTS[part.name]
    try:
        checksums = [read(host + download.checksum, PROBE_SECONDS).decode() for download in downloads]
        files = []
        with report.step(f"{part.name} {version}: downloaded from {host}"):
            for download in downloads:
                files.append(read(host + download.path, 60.0))
    except (OSError, ValueError):
        return False
    for download, checksum, data in zip(downloads, checksums, files, strict=True):
        name = Path(download.path).name
        if hashlib.sha256(data).hexdigest() != expected_digest(checksum, name):
            raise ClusterError(
                f"{host}{download.path} does not have its published checksum; try again, or report it to {host}."
            )
        if "" in download.members:
            _write_program(folder / download.members[""], data)
            continue
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member, target in download.members.items():
                content = archive.extractfile(member)
                if content is None:
                    raise ClusterError(f"{host}{download.path} holds no file {member}; report it to {host}.")
                _write_program(folder / target, content.read())
    return True


def _write_program(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o755)


def build_command(part: Part, version: str, folder: Path) -> list[str]:
    """The `go build` of a part. Nothing but the linking depends on the version, so Go's cache serves every version."""
    major, minor = (*version.removeprefix("v").split("."), "")[:2]
    values = {name: value.format(version=version, major=major, minor=minor) for name, value in part.variables.items()}
    flags = " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in values.items())])
    single = len(part.packages) == 1
    # A trailing slash makes Go write each program under its package's name; a single one may be named otherwise.
    output = str(folder / next(iter(part.packages))) if single else f"{folder}/"
    return ["go", "build", "-trimpath", "-ldflags", flags, "-o", output, *part.packages.values()]


def build(part: Part, version: str, folder: Path, report: Report) -> None:
    """Builds a part's programs from its pinned module.

    Raises:
        ClusterError: if Go is missing or too old, or the build fails.
    """
    require_go()
    with report.step(f"{part.name} {version}: built with Go", announce=True):
        done = subprocess.run(
            build_command(part, version, folder),
            cwd=MODULES / part.name,
            env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ClusterError(
            f"Building {part.name} {version} failed ({last}); see that `go env GOPROXY` can be reached and try again."
        )


def require_go() -> None:
    """Raises ClusterError unless a Go is there that can fetch the toolchain a module asks for (1.21 or later)."""
    advice = "install Go 1.26 or later from https://go.dev/dl and put it on PATH"
    if shutil.which("go") is None:
        raise ClusterError(f"Go is missing and no release could be downloaded; {advice}.")
    done = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False, cwd="/")
    match = re.match(r"go(\d+)\.(\d+)", done.stdout.strip())
    if match is None or (int(match[1]), int(match[2])) < (1, 21):
        raise ClusterError(f"Go on PATH is too old ({done.stdout.strip() or 'unknown'}); {advice}.")

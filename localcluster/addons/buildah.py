"""Builds ordinary Containerfiles without a container engine: buildah on a base that mmdebstrap made.

Every call of buildah runs in a mount namespace of its own, so that whatever it mounts is gone when it ends, however it
ends; and it ends when we are killed, so that the next build finds no other one in the store.

Certificates, name servers and the settings of pip and uv reach the build by mounts and are never written into an image.
Wheels come from uv's cache on this machine if they are there; it is mounted at a place that no Containerfile touches,
because a Containerfile that clears its own caches would clear this one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster import packages
from localcluster.components import REPOSITORY, Cluster
from localcluster.errors import ClusterError

SUITE = "bookworm"
BASE_PACKAGES = ("ca-certificates", "libstdc++6", "python3.11-minimal", "python3.11-venv")
BASE_OPTIONS = tuple(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale", "info"))

CACHE_MOUNT = "/mnt/uv-cache"


def wait_until(done: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Polls until `done`; raises ClusterError with the sentence `otherwise` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise ClusterError(otherwise)
        time.sleep(0.1)


def call(command: Sequence[str], directory: Path = REPOSITORY, said: Callable[[str], None] | None = None) -> str:
    """Runs a program and returns its standard output; with `said`, each line of what it says is handed on as it comes.

    Raises:
        ClusterError: if it fails or is missing; with its last words.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if said is None else subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise ClusterError(f"{command[0]} cannot be run ({error}); install it.") from None
    with process:
        if said is None:
            out, last = process.communicate()
        else:
            lines: list[str] = []
            for line in process.stdout or ():
                lines.append(line.rstrip())
                said(lines[-1])
            out, last = "\n".join(lines), "\n".join(lines[-12:])
    if process.returncode != 0:
        program = next((word for word in command if word in ("buildah", "mmdebstrap")), command[0])
        raise ClusterError(
            f"{program} failed:\n{last.strip()}\nThe same command goes on from here once the cause is gone."
        )
    return out


def uv_settings(environment: Mapping[str, str]) -> str:
    """A uv.toml with what the person's environment says of package indexes, for the build alone."""
    lines = ["system-certs = true", f'cache-dir = "{CACHE_MOUNT}"']
    index = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or environment.get("PIP_INDEX_URL")
    if index:
        lines.append(f"index-url = {json.dumps(index)}")
    return "\n".join(lines) + "\n"


def pip_settings(environment: Mapping[str, str]) -> str:
    """A pip.conf of the same kind; it serves to install uv itself."""
    lines = ["[global]", "cert = /etc/ssl/certs/ca-certificates.crt"]
    if index := environment.get("PIP_INDEX_URL"):
        lines.append(f"index-url = {index}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Store:
    """buildah with an image store of its own.

    Attributes:
        root: the store, kept between builds so that a change of code rebuilds nothing but the code.
        scratch: a temporary folder: what buildah knows of mounts, and the settings that are mounted into the build.
        environment: of the person who called.
    """

    root: Path
    scratch: Path
    environment: Mapping[str, str]

    def command(self, *arguments: str) -> list[str]:
        return [
            "setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private",
            "buildah", "--root", str(self.root), "--runroot", str(self.scratch / "run"), "--storage-driver", "overlay",
            *arguments,
        ]  # fmt: skip

    def run(self, *arguments: str, said: Callable[[str], None] | None = None) -> str:
        return call(self.command(*arguments), said=said)

    def has(self, name: str) -> bool:
        done = subprocess.run(self.command("inspect", "--type", "image", name), capture_output=True, check=False)
        return done.returncode == 0

    def build_base(self, name: str, archive: Path) -> None:
        """Makes an image of one layer from a tar of a root file system."""
        folder = self.scratch / "base"
        folder.mkdir()
        (folder / "Containerfile").write_text(f"FROM scratch\nADD {archive.name} /\n")
        os.link(archive, folder / archive.name)
        self.run("build", "--isolation", "chroot", "--tag", name, str(folder))
        shutil.rmtree(folder)

    def build(
        self,
        containerfile: Path,
        name: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        said: Callable[[str], None],
    ) -> None:
        """Builds a Containerfile of this repository, layer by layer, taking from the store what did not change."""
        self.run(
            "build", "--isolation", "chroot", "--network", "host", "--layers", "--force-rm",
            *(f"--build-arg={key}={value}" for key, value in arguments.items()),
            *(f"--label={key}={value}" for key, value in labels.items()),
            *(f"--volume={mount}" for mount in self._mounts()),
            "--file", str(containerfile), "--tag", name, str(REPOSITORY),
            said=said,
        )  # fmt: skip

    def _mounts(self) -> list[str]:
        settings = {"/etc/uv/uv.toml": uv_settings(self.environment), "/etc/pip.conf": pip_settings(self.environment)}
        mounts = []
        for number, (target, text) in enumerate(settings.items()):
            path = self.scratch / f"settings-{number}"
            path.write_text(text)
            mounts.append(f"{path}:{target}:ro")
        cache = Path(
            self.environment.get("UV_CACHE_DIR") or Path(self.environment.get("HOME", "/root")) / ".cache" / "uv"
        )
        cache.mkdir(parents=True, exist_ok=True)
        mounts.append(f"{cache}:{CACHE_MOUNT}")
        for place in ("/etc/ssl/certs", "/usr/local/share/ca-certificates", "/etc/resolv.conf"):
            if Path(place).exists():
                mounts.append(f"{Path(place).resolve()}:{place}:ro")
        return mounts

    def push(self, name: str, target: str) -> None:
        """Pushes to the local registry only layers that it lacks.

        To a registry, buildah compresses whatever it is told; the fastest zstd costs least here, and at each pull.
        """
        fast = ("--compression-format", "zstd", "--compression-level", "1")
        self.run("push", "--quiet", "--tls-verify=false", *fast, name, f"docker://{target}")

    def prune(self) -> None:
        """Removes what no image with a name needs any more."""
        self.run("rm", "--all")
        self.run("rmi", "--prune")


@contextlib.contextmanager
def store(cluster: Cluster) -> Iterator[Store]:
    """The cluster's image store, held by one process at a time."""
    packages.install(cluster.report, {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "unshare": "util-linux"})
    root = cluster.layout.cache / "buildah"
    root.mkdir(parents=True, exist_ok=True)
    with open(cluster.layout.cache / "buildah.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            cluster.report.say("         waiting for another build to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cluster.layout.cache.glob("buildah-*"):
            shutil.rmtree(left, ignore_errors=True)  # of a build that was killed
        with tempfile.TemporaryDirectory(dir=cluster.layout.cache, prefix="buildah-") as scratch:
            found = Store(root, Path(scratch), cluster.environment)
            found.run("rm", "--all")  # the working copies of such a build
            yield found


def make_base(archive: Path) -> None:
    """Writes a tar of a small Debian with Python, from the machine's Debian mirror. Takes half a minute."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    temporary = archive.with_name(f"{os.getpid()}-{archive.name}")
    try:
        call(
            [
                "mmdebstrap",
                "--quiet",
                "--variant=minbase",
                f"--include={','.join(BASE_PACKAGES)}",
                *BASE_OPTIONS,
                SUITE,
                str(temporary),
            ]
        )
        temporary.replace(archive)
    finally:
        temporary.unlink(missing_ok=True)


def step_title(line: str) -> str:
    """What to show of a line that buildah says: a step that runs something, shortened; "" for all other lines."""
    match = re.fullmatch(r"STEP (\d+/\d+): (RUN .*)", line)
    return f"{match[1]} {' '.join(match[2].split())[:90]}" if match else ""

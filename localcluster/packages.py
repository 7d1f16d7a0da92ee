"""Installs the Debian packages that a node is made of, if they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from localcluster.errors import ClusterError
from localcluster.report import Report

PACKAGES: Mapping[str, str] = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "nft": "nftables",
    "ip": "iproute2",
    "mount": "mount",
    "openssl": "openssl",
}
"""Program, or file, to the package that brings it."""

LOCK = ("-o", "DPkg::Lock::Timeout=300")
"""Waits for another apt-get to end, instead of failing beside it."""

SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing(programs: Mapping[str, str] = PACKAGES) -> list[str]:
    """The packages whose programs are not there."""
    path = f"{os.environ.get('PATH', '')}:{SEARCH}"
    return sorted(
        {
            package
            for name, package in programs.items()
            if not (Path(name).exists() if name.startswith("/") else shutil.which(name, path=path))
        }
    )


def install(report: Report, programs: Mapping[str, str] = PACKAGES) -> None:
    """Installs what is missing.

    Raises:
        ClusterError: if apt-get is not there or fails.
    """
    packages = missing(programs)
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(
            f"These are missing and there is no apt-get to install them: {', '.join(packages)}; install them."
        )
    with report.step(f"Debian packages: {' '.join(packages)}", announce=True):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *LOCK, *packages]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            # The lists of a fresh machine are empty or old.
            subprocess.run(["apt-get", "update", "-q"], env=environment, capture_output=True, check=False)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ClusterError(f"apt-get could not install {', '.join(packages)} ({last}); install them and try again.")

"""Which cluster is meant: "local" (ours), "kind" (a container engine answers) or "current" (the kubeconfig at hand)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping

from localcluster.errors import ClusterError

ENGINES = ("local", "kind", "current")


def engine_answers(program: str) -> bool:
    """Whether a container engine's daemon really answers; a client without one does not count."""
    if shutil.which(program) is None:
        return False
    try:
        done = subprocess.run(
            [program, "info", "--format", "{{.ID}}" if program == "docker" else "{{.Host.Arch}}"],
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


def container_engine(answers: Callable[[str], bool] = engine_answers) -> str:
    """The container engine that answers, "docker" before "podman", or "" if none does."""
    return next((program for program in ("docker", "podman") if answers(program)), "")


def choose_engine(environment: Mapping[str, str], answers: Callable[[str], bool] = engine_answers) -> str:
    """Reads CLUSTER, or looks for a container engine.

    Raises:
        ClusterError: if CLUSTER is none of the known ones.
    """
    given = environment.get("CLUSTER", "")
    if not given:
        return "kind" if container_engine(answers) else "local"
    if given not in ENGINES:
        raise ClusterError(f"CLUSTER is {given!r}; it can be {', '.join(ENGINES)}, or unset.")
    return given

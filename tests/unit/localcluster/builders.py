"""Small clusters for the tests of `localcluster`: a folder of their own, no Kubernetes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from localcluster.components import Cluster
from localcluster.layout import Layout
from localcluster.report import Report

PATIENCE = 30.0
"""How long a test waits for another process, on a machine under load."""


def cluster_in(folder: Path, environment: Mapping[str, str] | None = None, engine: str = "local") -> Cluster:
    """A cluster whose cache is a folder."""
    return Cluster(Layout(folder), engine, dict(environment or {}), Report(io.StringIO()))


def until(condition: Callable[[], bool]) -> bool:
    """Polls until a condition holds; False if it never does."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()

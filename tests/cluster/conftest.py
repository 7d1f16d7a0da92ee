"""Fixtures of the tests on a real cluster: the one that `python -m localcluster up` made, or whatever CLUSTER names.

python -m localcluster up && python -m localcluster images && pytest tests/cluster
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster.components import Cluster
from localcluster.engine import choose_engine
from localcluster.images import OPERATOR, last_built
from localcluster.layout import layout_from
from localcluster.report import Report
from tests.cluster.kubectl import Kubectl


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster that tests run on; their first request fails with what to do if it is not up."""
    return Cluster(layout_from(os.environ, Path.home()), choose_engine(os.environ), os.environ, Report())


@pytest.fixture(scope="session")
def image(cluster: Cluster) -> str:
    """A small image with Python that the nodes can pull: the operator's."""
    return last_built(cluster)[OPERATOR.name]


@pytest.fixture(scope="session")
def nodes(cluster: Cluster) -> list[str]:
    """The names of the real nodes, sorted."""
    items = cluster.api().get("/api/v1/nodes?labelSelector=!type")["items"]
    return sorted(item["metadata"]["name"] for item in items)


@pytest.fixture(scope="module")
def kubectl(cluster: Cluster) -> Iterator[Kubectl]:
    """kubectl in a namespace that lives as long as the module's tests, under Pod Security `restricted`."""
    name = f"test-{secrets.token_hex(4)}"
    api = cluster.api()
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield Kubectl(cluster.kubeconfig, name)
    api.delete(f"/api/v1/namespaces/{name}")

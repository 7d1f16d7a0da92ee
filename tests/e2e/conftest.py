"""Fixtures of the end-to-end tests: the cluster with Kubeformer installed, and a namespace for each test.

python -m localcluster up && python -m localcluster images && python -m localcluster install && pytest tests/e2e
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import kubectl as examples_kubectl
from examples.demo import gateway_service
from examples.gateway import Gateway
from localcluster.components import Cluster
from localcluster.engine import choose_engine
from localcluster.images import OPERATOR, last_built
from localcluster.layout import layout_from
from localcluster.report import Report
from tests.cluster.kubectl import Kubectl
from tests.e2e.lab import Lab, rows_map


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster that tests run on; their first request fails with what to do if it is not up."""
    return Cluster(layout_from(os.environ, Path.home()), choose_engine(os.environ), os.environ, Report())


@pytest.fixture(scope="module")
def lab(cluster: Cluster) -> Iterator[Lab]:
    """A namespace under Pod Security `restricted`, with rows to train on, for the tests of a module."""
    name = f"e2e-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.api().apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    made = Lab(Kubectl(cluster.kubeconfig, name), last_built(cluster)[OPERATOR.name])
    made.apply(rows_map())
    yield made
    cluster.api().delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def gateway(cluster: Cluster) -> Iterator[Gateway]:
    """The gateway, reached as from any workstation: by port-forward."""
    kubectl = examples_kubectl.Kubectl({**os.environ, "KUBECONFIG": str(cluster.kubeconfig)})
    with examples_kubectl.PortForward(kubectl, *gateway_service(kubectl)) as forward:
        yield Gateway(forward.url)

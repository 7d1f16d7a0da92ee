"""Fixtures of the tests with real vLLM: SmolLM2 on a claim, and a deployment of it whose engine is vLLM.

make test-vllm: builds the image with vLLM, gives it to the cluster, and runs this.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import kubectl as examples_kubectl
from examples import smollm2
from examples.demo import gateway_service
from examples.gateway import Gateway
from examples.upload import targets, upload
from localcluster.components import Cluster
from localcluster.engine import choose_engine
from localcluster.images import OPERATOR, last_built
from localcluster.layout import layout_from
from localcluster.report import Report
from tests.cluster.kubectl import Kubectl
from tests.e2e.lab import Lab, condition, model_deployment

CLAIM = "models"
READY_SECONDS = 1200.0  # a first pull of 2 GB


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster that tests run on; their first request fails with what to do if it is not up."""
    return Cluster(layout_from(os.environ, Path.home()), choose_engine(os.environ), os.environ, Report())


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster) -> examples_kubectl.Kubectl:
    """kubectl as the examples use it."""
    return examples_kubectl.Kubectl({**os.environ, "KUBECONFIG": str(cluster.kubeconfig)})


@pytest.fixture(scope="session")
def gateway(kubectl: examples_kubectl.Kubectl) -> Iterator[Gateway]:
    """The gateway, reached as from any workstation: by port-forward."""
    with examples_kubectl.PortForward(kubectl, *gateway_service(kubectl)) as forward:
        yield Gateway(forward.url)


@pytest.fixture(scope="module")
def lab(cluster: Cluster, kubectl: examples_kubectl.Kubectl) -> Iterator[Lab]:
    """A namespace under Pod Security `restricted`, with SmolLM2 on a claim."""
    name = f"vllm-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.api().apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    made = Lab(Kubectl(cluster.kubeconfig, name), last_built(cluster)[OPERATOR.name])
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "2Gi"}}}
    made.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec})
    upload(kubectl, name, CLAIM, targets("smollm2", [smollm2.ensure()]), made.image)
    yield made
    cluster.api().delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="module")
def model(lab: Lab) -> str:
    """The name of a deployment that serves SmolLM2 with vLLM, and is ready. One node alone pulls its image."""
    name = f"smollm2-{lab.namespace.rpartition('-')[2]}"  # names of models are the cluster's, not the namespace's
    node = lab.list("nodes", "!type")[-1]["metadata"]["labels"]["kubernetes.io/hostname"]
    lab.apply(
        model_deployment(
            name,
            model={"uri": f"pvc://{CLAIM}/smollm2"},
            engine={"type": "VLLM", "maxModelLength": 1024, "maxSequences": 8},
            sampling={"temperature": 0.0},
            resources={"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "6Gi"}},
            pod={"nodeSelector": {"kubernetes.io/hostname": node}},
            drainSeconds=120,
        )
    )
    lab.wait(
        f"{name} is ready",
        lambda: condition(lab.get("modeldeployment", name), "Ready").get("status") == "True",
        READY_SECONDS,
    )
    return name

"""A real API server takes everything the chart makes, in a namespace under Pod Security `restricted`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.apiserver import Client, running_api_server
from tests.helm.render import NAMESPACE, Object, Rendered, render

PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "CustomResourceDefinition": "customresourcedefinitions",
}
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """An API server with the chart's namespace, which enforces `restricted`."""
    with running_api_server() as server:
        connection = server.client()
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        code, answer = connection.request(
            "POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": labels}}
        )
        assert code == 201, answer
        yield connection


@pytest.fixture(scope="module")
def chart() -> Rendered:
    """The chart with everything switched on."""
    return render("gangs=true", 'gateway.service.type="LoadBalancer"', 'images.pullSecrets=["mine"]')


def create(client: Client, body: Object) -> tuple[int, Object]:
    """What the API server answers to a dry run of a creation; unknown fields are refused."""
    version, kind = body["apiVersion"], body["kind"]
    plural = PLURALS.get(kind, kind.lower() + "s")
    where = "" if kind in CLUSTER_WIDE else f"namespaces/{NAMESPACE}/"
    prefix = "/apis" if "/" in version else "/api"
    return client.request("POST", f"{prefix}/{version}/{where}{plural}?dryRun=All&fieldValidation=Strict", body)


def test_every_object_is_accepted(client: Client, chart: Rendered) -> None:
    for body in chart.objects:
        code, answer = create(client, body)
        assert code == 201, f"{body['kind']} {body['metadata']['name']}: {answer}"


def test_every_pod_is_admitted_under_the_restricted_standard(client: Client, chart: Rendered) -> None:
    for deployment in chart.all("Deployment"):
        template = deployment["spec"]["template"]
        metadata = {"name": deployment["metadata"]["name"], "labels": template["metadata"]["labels"]}
        code, answer = create(
            client, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        )
        assert code == 201, answer


def test_the_standard_is_enforced_there_or_the_test_above_would_say_nothing(client: Client, chart: Rendered) -> None:
    deployment = chart.one("Deployment", "kubeformer-operator")
    spec = deployment["spec"]["template"]["spec"] | {"hostNetwork": True}
    code, answer = create(client, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec})
    assert code == 403
    assert "violates PodSecurity" in answer["message"]

"""From rows to a model that answers, and back to nothing but the model."""

from __future__ import annotations

from examples.gateway import Gateway
from tests.e2e.lab import Lab, condition, lister, model_deployment, training_job

THEIRS = {
    "configmap/kube-root-ca.crt",  # Kubernetes puts these two into every namespace
    "serviceaccount/default",
    "configmap/rows",  # and this one is the user's
}


def test_two_resources_make_a_model_that_answers_and_leave_only_the_model(lab: Lab, gateway: Gateway) -> None:
    name = f"spam-{lab.namespace}"  # names of models are the cluster's, not the namespace's
    lab.apply(training_job(name), model_deployment(name))

    waiting = lab.wait_for_condition("modeldeployment", name, "ModelReady", "False", "WaitingForModel")
    assert name in condition(waiting, "ModelReady")["message"]

    job = lab.wait_for_condition("trainingjob", name, "Succeeded", "True", "Completed")
    status = job["status"]
    assert {pod["spec"]["nodeName"] for pod in lab.workers(name)} == set(_nodes(lab))  # one worker on each node
    assert status["progress"]["percent"] == 100
    assert [epoch["epoch"] for epoch in status["epochs"]] == [1, 2, 3, 4, 5, 6]
    assert status["provenance"]["worldSize"] == 2
    assert status["workers"]["restarts"] == 0
    (artifact,) = status["artifacts"]
    figures = {figure["name"]: float(figure["value"]) for figure in artifact["metrics"]}
    assert figures["validation/accuracy"] > 0.9

    served = lab.wait_for_condition("modeldeployment", name, "Ready", "True", "Serving")
    assert served["status"]["lineage"]["digest"] == artifact["digest"]
    assert name in gateway.models()
    texts = ["winner prize lottery free money casino", "meeting agenda report schedule minutes"]
    assert gateway.classify(name, texts) == ["spam", "ham"]
    assert gateway.classify(f"{lab.namespace}/{name}", texts[:1]) == ["spam"]

    lab.delete("trainingjob", name)
    lab.wait("the TrainingJob is gone", lambda: not lab.get("trainingjob", name))
    assert gateway.classify(name, texts) == ["spam", "ham"]  # it serves on without the job
    lab.delete("modeldeployment", name)
    lab.wait("only the storage is left", lambda: _left(lab) == {"persistentvolumeclaim/kubeformer"})

    lab.apply(lister("kubeformer", lab.image))
    lab.kubectl.wait_for_phase("lister", "Succeeded")
    files = lab.kubectl.run("logs", "lister").split("\n")[:-1]
    assert f"models/{name}/model.safetensors" in files
    assert [file for file in files if not file.startswith(f"models/{name}/")] == []


def _nodes(lab: Lab) -> list[str]:
    return [node["metadata"]["name"] for node in lab.list("nodes", "!type")]


def _left(lab: Lab) -> set[str]:
    """Everything in the namespace that the API server can list, but for events and what is not ours."""
    kinds = lab.kubectl.run("api-resources", "--verbs=list,delete", "--namespaced", "-o", "name").split()
    listed = [kind for kind in kinds if not kind.startswith("events")]
    found = lab.kubectl.run("get", ",".join(listed), "-o", "name", "--ignore-not-found").split()
    return {_short(name) for name in found} - THEIRS


def _short(name: str) -> str:
    """configmap/rows, whatever group its kind belongs to."""
    kind, _, rest = name.partition("/")
    return f"{kind.partition('.')[0]}/{rest}"

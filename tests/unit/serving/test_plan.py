"""A ModelDeployment from `kubectl apply` through roll-outs to its deletion, played against a model of the cluster."""

from typing import Any

import pytest

from kubeformer import serving
from kubeformer.api.model_deployment import ModelDeployment
from kubeformer.contract import names
from kubeformer.contract.server import ServerSettings
from kubeformer.kit.plan import Delete
from kubeformer.kit.view import Key
from tests.unit.restricted import violations
from tests.unit.serving.builders import (
    DEPLOYMENT,
    DIGEST,
    KEY,
    from_job,
    model_deployment,
    serving_world,
    trained,
    world,
)
from tests.unit.world import NAMESPACE, World, claim, condition, node

JOB = Key("TrainingJob", NAMESPACE, "spam")


def status(w: World, key: Key = KEY) -> dict[str, Any]:
    found: dict[str, Any] = w.objects[key]["status"]
    ModelDeployment.parse(w.objects[key])  # whatever is written fits the schema
    return found


def said(w: World, kind: str) -> tuple[str, str]:
    found = condition(status(w), kind)
    return found["status"], found["reason"]


def settings_of(w: World) -> ServerSettings:
    name = w.objects[DEPLOYMENT]["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"]
    text = w.objects[Key("ConfigMap", NAMESPACE, name)]["data"][names.SETTINGS_KEY]
    return ServerSettings.model_validate_json(text)


def revision(w: World) -> str:
    found: str = w.objects[DEPLOYMENT]["spec"]["template"]["metadata"]["labels"][names.LABEL_REVISION]
    return found


def test_a_minimal_deployment_gets_settings_a_service_and_one_server() -> None:
    w = world()
    w.settle(serving.reconcile, KEY)
    kinds = sorted(key.kind for key in w.objects if key.kind not in ("Node", "PersistentVolumeClaim"))
    assert kinds == ["ConfigMap", "Deployment", "ModelDeployment", "Service"]
    settings = settings_of(w)
    assert settings.model.path == "/mnt/claims/kubeformer/models/spam"
    assert settings.served_names == ["spam"]
    assert w.objects[DEPLOYMENT]["spec"]["replicas"] == 1
    assert said(w, "Ready") == ("False", "Loading")
    labels = w.objects[DEPLOYMENT]["spec"]["template"]["metadata"]["labels"]
    service = w.objects[Key("Service", NAMESPACE, "spam")]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["metadata"]["labels"][names.LABEL_MODEL_DEPLOYMENT] == "spam"  # the gateway reads it on the slices


def test_it_is_ready_when_all_replicas_answer() -> None:
    w = serving_world(replicas=2)
    assert said(w, "Ready") == ("True", "Serving")
    assert said(w, "Available") == ("True", "Serving")
    assert said(w, "Progressing") == ("False", "RolledOut")
    found = status(w)
    assert (found["replicas"], found["readyReplicas"]) == (2, 2)
    assert found["url"] == "http://gateway/v1"
    assert found["servedNames"] == ["spam", "lab/spam"]
    assert found["revisions"] == [{"name": revision(w), "replicas": 2, "ready": 2, "weight": 100}]
    assert [event.reason for event in w.events] == ["Serving"]


def test_planning_again_changes_nothing() -> None:
    w = serving_world(trained(), deployment=from_job(replicas=2))
    before = {key: body["metadata"]["resourceVersion"] for key, body in w.objects.items()}
    w.now += 3600
    w.settle(serving.reconcile, KEY)
    assert {key: body["metadata"]["resourceVersion"] for key, body in w.objects.items()} == before


def test_servers_are_allowed_under_pod_security_restricted_and_only_read_the_model() -> None:
    w = world(pod={"sharedMemory": "1Gi"})
    w.settle(serving.reconcile, KEY)
    pod = w.objects[DEPLOYMENT]["spec"]["template"]["spec"]
    assert violations(pod) == []
    mounts = {m["mountPath"]: m for m in pod["containers"][0]["volumeMounts"]}
    assert mounts["/mnt/claims/kubeformer"]["readOnly"] is True


def test_a_server_gets_the_time_to_finish_its_answers() -> None:
    w = world(drainSeconds=100)
    w.settle(serving.reconcile, KEY)
    assert settings_of(w).drain_seconds == 100
    pod = w.objects[DEPLOYMENT]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 115
    w = world(drainSeconds=10, pod={"terminationGracePeriodSeconds": 500})
    w.settle(serving.reconcile, KEY)
    assert w.objects[DEPLOYMENT]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 500


def test_a_budget_guards_several_replicas_and_goes_with_them() -> None:
    budget = Key("PodDisruptionBudget", NAMESPACE, "spam")
    w = serving_world(replicas=2)
    assert w.objects[budget]["spec"]["maxUnavailable"] == 1
    w.edit(KEY, replicas=1)
    w.settle(serving.reconcile, KEY)
    assert budget not in w.objects


def test_scaling_starts_no_new_revision_and_zero_is_ready() -> None:
    w = serving_world()
    before = revision(w)
    w.edit(KEY, replicas=3)
    w.settle(serving.reconcile, KEY)
    assert w.objects[DEPLOYMENT]["spec"]["replicas"] == 3
    assert revision(w) == before
    w.edit(KEY, replicas=0)
    w.settle(serving.reconcile, KEY)
    w.roll_out("spam")
    w.settle(serving.reconcile, KEY)
    assert said(w, "Ready") == ("True", "ScaledToZero")
    assert said(w, "Available") == ("False", "ScaledToZero")


def test_it_waits_for_the_job_and_serves_what_it_published() -> None:
    job = trained()
    artifacts = job["status"].pop("artifacts")
    job["status"]["conditions"] = []
    w = world(job, deployment=from_job())
    plan = w.settle(serving.reconcile, KEY)
    assert DEPLOYMENT not in w.objects
    assert said(w, "Ready") == ("False", "WaitingForModel")
    assert said(w, "ModelReady") == ("False", "WaitingForModel")
    assert said(w, "Valid") == ("True", "Accepted")
    assert JOB in plan.depends_on
    w.objects[JOB]["status"]["artifacts"] = artifacts
    w.settle(serving.reconcile, KEY)
    assert settings_of(w).model.digest == DIGEST
    assert status(w)["lineage"] == {
        "trainingJob": "spam",
        "uid": w.objects[JOB]["metadata"]["uid"],
        "step": 100,
        "digest": DIGEST,
        "data": "pvc://mail/spam.jsonl",
        "metrics": [{"name": "validation/accuracy", "value": "0.97"}],
    }


def test_it_serves_on_when_the_job_is_deleted() -> None:
    w = serving_world(trained(), deployment=from_job())
    before = w.objects[DEPLOYMENT]
    lineage = status(w)["lineage"]
    w.delete(JOB)
    w.settle(serving.reconcile, KEY)
    assert w.objects[DEPLOYMENT] == before
    assert said(w, "Ready") == ("True", "Serving")
    assert status(w)["lineage"] == lineage
    assert "served as recorded" in condition(status(w), "ModelReady")["message"]
    w.add(trained() | {"status": {}})  # another job of the name, which has published nothing yet
    w.settle(serving.reconcile, KEY)
    assert w.objects[DEPLOYMENT] == before


def test_a_new_artifact_is_a_new_revision() -> None:
    w = serving_world(trained(), deployment=from_job())
    old = revision(w)
    old_settings = settings_of(w)
    w.objects[JOB]["status"]["artifacts"].append(
        {"uri": "pvc://kubeformer/models/spam", "digest": "sha256:new", "step": 9}
    )
    w.settle(serving.reconcile, KEY)
    assert revision(w) != old
    assert said(w, "Ready") == ("False", "RollingOut")
    assert said(w, "Available") == ("True", "Serving")
    assert old_settings.model.digest == DIGEST
    assert len([key for key in w.objects if key.kind == "ConfigMap"]) == 2  # old servers may still start again
    w.roll_out("spam")
    w.settle(serving.reconcile, KEY)
    assert said(w, "Ready") == ("True", "Serving")
    assert [(r["ready"], r["weight"]) for r in status(w)["revisions"]] == [(0, 0), (1, 100)]
    assert len([key for key in w.objects if key.kind == "ConfigMap"]) == 1


def test_a_new_chart_does_not_restart_servers_that_work_and_mends_those_that_do_not() -> None:
    w = serving_world()
    before = revision(w)
    w.settings = type(w.settings)(worker_image="w:2", server_image="s:2")
    w.settle(serving.reconcile, KEY)
    assert revision(w) == before
    w.edit(KEY, engine={"maxSequences": 8})  # a new revision anyway
    w.settle(serving.reconcile, KEY)
    assert w.objects[DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]["image"] == "s:2"
    w = world()
    w.settle(serving.reconcile, KEY)
    w.roll_out("spam", ready=0)
    w.settings = type(w.settings)(worker_image="w:2", server_image="s:2")
    w.settle(serving.reconcile, KEY)
    assert w.objects[DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]["image"] == "s:2"


@pytest.mark.parametrize(
    ("message", "ready", "model_ready"),
    [
        (
            '{"phase": "Failed", "failure": {"reason": "ModelNotFound", "message": "model.uri: no such directory"}}',
            "ModelNotFound",
            "ModelNotFound",
        ),
        ('{"reason": "ModelInvalid", "message": "model.uri: no such directory"}', "ModelInvalid", "ModelInvalid"),
        ("Traceback\n  ...\nmodel.uri: no such directory\n", "ContainerFailed", "ModelFound"),
    ],
)
def test_a_server_that_stops_again_and_again_says_why(message: str, ready: str, model_ready: str) -> None:
    w = world()
    w.settle(serving.reconcile, KEY)
    (pod,) = w.roll_out("spam", ready=0)
    w.objects[pod]["status"]["containerStatuses"] = [
        {
            "name": "server",
            "ready": False,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 78, "message": message}},
        }
    ]
    w.settle(serving.reconcile, KEY)
    assert said(w, "Ready") == ("False", ready)
    assert said(w, "ModelReady")[1] == model_ready
    assert "no such directory" in condition(status(w), "Ready")["message"]
    assert w.events[-1].type == "Warning"


def test_a_new_revision_that_does_not_start_leaves_the_old_one_serving() -> None:
    w = serving_world(replicas=1)
    old = [key for key in w.objects if key.kind == "Pod"]
    w.edit(KEY, engine={"maxSequences": 8})
    w.settle(serving.reconcile, KEY)
    pods = {key: w.objects[key] for key in old}
    (new,) = w.roll_out("spam", ready=0)
    body = w.objects.pop(new)
    body["metadata"]["name"] = "spam-new"
    body["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    w.objects[Key("Pod", NAMESPACE, "spam-new")] = body
    w.objects.update(pods)
    w.objects[DEPLOYMENT]["status"].update(replicas=2, readyReplicas=1, updatedReplicas=1)
    w.settle(serving.reconcile, KEY)
    assert said(w, "Ready") == ("False", "ContainerFailed")
    assert said(w, "Progressing") == ("False", "RolloutStuck")
    assert said(w, "Available") == ("True", "Serving")
    assert "more memory than its limit" in condition(status(w), "Ready")["message"]


def test_a_name_belongs_to_the_oldest_deployment_that_claims_it() -> None:
    w = serving_world()
    w.now += 60
    rival = Key("ModelDeployment", "other", "rival")
    w.add(model_deployment("rival", model={"uri": "pvc://kubeformer/m", "servedNames": ["spam", "free"]}) | {})
    body = w.objects.pop(Key("ModelDeployment", NAMESPACE, "rival"))
    body["metadata"]["namespace"] = "other"
    w.objects[rival] = body
    w.add(claim("kubeformer", namespace="other"))
    plan = w.settle(serving.reconcile, rival)
    found = condition(status(w, rival), "Valid")
    assert (found["status"], found["reason"]) == ("False", "NameTaken")
    assert "spam (by lab/spam)" in found["message"]
    assert status(w, rival)["servedNames"] == ["free", "other/rival"]
    assert KEY in plan.depends_on
    w.settle(serving.reconcile, KEY)
    assert said(w, "Valid") == ("True", "Accepted")
    w.delete(KEY)
    w.settle(serving.reconcile, rival)
    assert status(w, rival)["servedNames"] == ["spam", "free", "other/rival"]


@pytest.mark.parametrize(
    ("spec", "kind", "reason", "words"),
    [
        ({"model": {"uri": "pvc://nowhere/m"}}, "Valid", "ClaimNotFound", "the claim nowhere does not exist"),
        ({"model": {"trainingJobRef": {"name": "nobody"}}}, "Valid", "ModelNotFound", "there is no such TrainingJob"),
        (
            {"resources": {"limits": {"nvidia.com/gpu": 1}}},
            "Progressing",
            "InsufficientCapacity",
            "leave it out to run on CPU",
        ),
        ({"model": {"uri": "pvc://alone/m"}, "replicas": 2}, "Valid", "SettingsInvalid", "set spec.replicas to 1"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(spec: dict[str, Any], kind: str, reason: str, words: str) -> None:
    w = world(claim("alone", "ReadWriteOnce"), **spec)
    w.settle(serving.reconcile, KEY)
    assert DEPLOYMENT not in w.objects
    assert said(w, kind) == ("False", reason)
    assert said(w, "Ready") == ("False", reason)
    assert words in condition(status(w), "Ready")["message"]


def test_a_failed_job_is_named_with_its_reason() -> None:
    failed = {"conditions": [{"type": "Succeeded", "status": "False", "message": "no rows"}], "artifacts": []}
    w = world(trained(**failed), deployment=from_job())
    w.settle(serving.reconcile, KEY)
    assert said(w, "Ready") == ("False", "ModelFailed")
    assert "(no rows)" in condition(status(w), "Ready")["message"]


def test_what_runs_goes_on_whatever_is_asked_for_next() -> None:
    w = serving_world()
    before = w.objects[DEPLOYMENT]
    w.edit(KEY, model={"uri": "pvc://nowhere/other"})
    w.settle(serving.reconcile, KEY)
    assert w.objects[DEPLOYMENT] == before
    assert said(w, "Ready") == ("False", "ClaimNotFound")
    assert said(w, "Available") == ("True", "Serving")
    w.edit(KEY, model={"uri": "pvc://kubeformer/models/spam"})
    for key in [key for key in w.objects if key.kind == "Node"]:
        del w.objects[key]
    w.add(node("tiny", cpu="100m"))  # the nodes that were big enough are away for now
    w.settle(serving.reconcile, KEY)
    assert said(w, "Ready") == ("True", "Serving")


def test_every_field_reaches_the_server() -> None:
    w = world(
        model={"uri": "pvc://kubeformer/models/spam", "servedNames": ["mail", "spam:1"]},
        engine={"dtype": "BFloat16", "maxModelLength": 256, "maxSequences": 3},
        sampling={
            "temperature": 0.5,
            "topP": 0.9,
            "topK": 5,
            "minP": 0.1,
            "repetitionPenalty": 1.1,
            "maxTokens": 9,
            "seed": 4,
        },
        rollout={"maxSurge": 2, "maxUnavailable": 1},
        resources={"limits": {"cpu": "2", "memory": "2Gi"}},
    )
    w.settle(serving.reconcile, KEY)
    found = settings_of(w)
    assert found.served_names == ["mail", "spam:1"]
    assert (found.dtype, found.max_model_length, found.max_num_seqs) == ("BFloat16", 256, 3)
    assert found.sampling.model_dump() == {
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 5,
        "minP": 0.1,
        "repetitionPenalty": 1.1,
        "maxTokens": 9,
        "seed": 4,
    }
    spec = w.objects[DEPLOYMENT]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 2, "maxUnavailable": 1}
    container = spec["template"]["spec"]["containers"][0]
    assert container["resources"] == {
        "limits": {"cpu": "2", "memory": "2Gi"},
        "requests": {"cpu": "250m", "memory": "1Gi"},
    }
    assert {"name": "OMP_NUM_THREADS", "value": "2"} in container["env"]


def test_a_deployment_that_is_deleted_leaves_all_to_garbage_collection() -> None:
    w = serving_world(replicas=2)
    for key, body in w.objects.items():
        if key.kind in ("ConfigMap", "Service", "Deployment", "PodDisruptionBudget"):
            (owner,) = body["metadata"]["ownerReferences"]
            assert owner["uid"] == w.objects[KEY]["metadata"]["uid"]
            assert owner["controller"] is True
    w.objects[KEY]["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    plan = w.plan(serving.reconcile, KEY)
    assert (plan.actions, plan.status) == ((), None)


def test_a_foreign_deployment_of_the_name_is_not_touched() -> None:
    w = world({"kind": "Deployment", "metadata": {"name": "spam"}, "spec": {"replicas": 9}})
    plan = w.settle(serving.reconcile, KEY)
    assert not any(isinstance(action, Delete) for action in plan.actions)
    assert w.objects[DEPLOYMENT]["spec"] == {"replicas": 9}
    assert said(w, "Valid") == ("False", "NameTaken")

"""What is wrong with a TrainingJob is said before anything starts: which field, what was given, what to do."""

from typing import Any

import pytest

from kubeformer import training
from kubeformer.kit.view import Key
from tests.unit.training.builders import JOB, KEY, training_job, world
from tests.unit.world import NAMESPACE, World, claim, condition, config_map, node


def verdict(w: World, kind: str = "Valid") -> tuple[str, str, str]:
    w.settle(training.reconcile, KEY)
    assert JOB not in w.objects
    assert "startTime" not in w.objects[KEY]["status"]  # so that the spec may still be mended in place
    found = condition(w.objects[KEY]["status"], kind)
    assert condition(w.objects[KEY]["status"], "Succeeded")["reason"] == found["reason"]  # the STATUS column
    return found["status"], found["reason"], found["message"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"data": {"uri": "pvc://nowhere/spam.jsonl"}}, "spec.data.uri"),
        (
            {"data": {"uri": "pvc://mail/a.jsonl", "validation": {"uri": "pvc://nowhere/b.jsonl"}}},
            "spec.data.validation.uri",
        ),
        ({"data": {"uri": "pvc://mail/a.jsonl", "test": {"uri": "pvc://nowhere/b.jsonl"}}}, "spec.data.test.uri"),
        ({"model": {"uri": "pvc://nowhere/base"}}, "spec.model.uri"),
        ({"checkpoint": {"storage": {"uri": "pvc://nowhere/ckpt"}}}, "spec.checkpoint.storage.uri"),
        ({"output": {"storage": {"uri": "pvc://nowhere/out"}}}, "spec.output.storage.uri"),
    ],
)
def test_a_claim_that_does_not_exist_is_named_with_its_field(spec: dict[str, Any], field: str) -> None:
    state, reason, message = verdict(world(**spec))
    assert (state, reason) == ("False", "ClaimNotFound")
    assert message.startswith(f"{field} is pvc://nowhere/")
    assert "make it, or name another" in message


def test_the_job_starts_when_the_claim_appears() -> None:
    w = world(data={"uri": "pvc://late/spam.jsonl"})
    plan = w.settle(training.reconcile, KEY)
    assert Key("PersistentVolumeClaim", NAMESPACE, "late") in plan.depends_on
    w.add(claim("late"))
    w.settle(training.reconcile, KEY)
    assert JOB in w.objects


def test_a_config_map_or_its_key_that_is_missing_is_named() -> None:
    spec = {"data": {"uri": "configmap://rows/mails.jsonl"}}
    assert verdict(world(**spec))[1] == "ConfigMapNotFound"
    w = world(config_map("rows", **{"other.jsonl": ""}), **spec)
    assert "has no key mails.jsonl (it has other.jsonl)" in verdict(w)[2]
    w = world(config_map("rows", **{"mails.jsonl": ""}), **spec)
    w.settle(training.reconcile, KEY)
    assert JOB in w.objects


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadWriteOncePod"])
def test_several_workers_need_claims_that_several_nodes_can_mount(mode: str) -> None:
    spec = {"data": {"uri": "pvc://alone/spam.jsonl"}}
    state, reason, message = verdict(world(claim("alone", mode), workers={"replicas": 2}, **spec))
    assert (state, reason) == ("False", "StorageUnsuitable")
    assert "spec.data.uri" in message
    assert f"has {mode}" in message
    assert "set spec.workers.replicas to 1" in message
    w = world(claim("alone", mode), **spec)
    w.settle(training.reconcile, KEY)
    assert JOB in w.objects


def test_a_claim_that_may_only_be_read_serves_for_data_and_not_for_output() -> None:
    shared = claim("shared", "ReadOnlyMany")
    w = world(shared, workers={"replicas": 2}, data={"uri": "pvc://shared/spam.jsonl"})
    w.settle(training.reconcile, KEY)
    assert JOB in w.objects
    w = world(shared, workers={"replicas": 2}, output={"storage": {"uri": "pvc://shared/out"}})
    assert verdict(w)[1] == "StorageUnsuitable"


def test_a_gpu_that_nobody_has_is_said_with_what_there_is_and_the_way_out() -> None:
    spec = {"workers": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}
    state, reason, message = verdict(world(**spec), "Admitted")
    assert (state, reason) == ("False", "InsufficientCapacity")
    assert message == (
        "spec.workers.resources.limits asks for nvidia.com/gpu: 1, and no node has any: leave it out to run on CPU, "
        "or add a node that has it."
    )
    w = world(**spec)
    assert Key("Node", "", "") in w.settle(training.reconcile, KEY).depends_on
    w.add(node("gpu1", nvidia_com_gpu="1"))
    w.settle(training.reconcile, KEY)
    assert JOB in w.objects


def test_more_memory_than_any_node_has_is_said_with_what_the_largest_has() -> None:
    spec = {"workers": {"resources": {"requests": {"memory": "64Gi"}}}}
    assert "the largest node has 8192Mi: ask for less" in verdict(world(**spec), "Admitted")[2]


def test_each_thing_on_some_node_is_not_enough_all_must_be_on_one() -> None:
    spec = {"workers": {"resources": {"requests": {"cpu": "8", "memory": "6Gi"}}}}
    w = world(node("many-cores", cpu="16", memory="4Gi"), **spec)
    assert "no single node has all of it" in verdict(w, "Admitted")[2]


def test_what_was_only_estimated_is_called_an_estimate() -> None:
    model = {"architecture": {"layers": 48, "width": 4096, "heads": 32}}
    message = verdict(world(model=model), "Admitted")[2]
    assert message.startswith("spec.workers.resources.requests.memory is left out, and one pod is taken to need ")
    assert "set it to what you know to be enough" in message


def test_without_nodes_in_view_nothing_is_claimed_about_them() -> None:
    w = World(claim("mail"), training_job(workers={"resources": {"limits": {"nvidia.com/gpu": 8}}}))
    w.settle(training.reconcile, KEY)
    assert JOB in w.objects


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (None, "Valid", "ModelNotFound"),
        ({}, "Admitted", "WaitingForModel"),
        ({"conditions": [{"type": "Succeeded", "status": "False"}]}, "Valid", "ModelFailed"),
    ],
)
def test_the_job_whose_model_is_wanted_must_have_published(
    status: dict[str, Any] | None, kind: str, reason: str
) -> None:
    base = [] if status is None else [training_job("base") | {"status": status}]
    w = world(*base, model={"trainingJobRef": {"name": "base"}})
    state, found, message = verdict(w, kind)
    assert (state, found) == ("False", reason)
    assert "spec.model.trainingJobRef.name is base" in message


def test_a_job_cannot_go_on_from_itself() -> None:
    assert "this job itself" in verdict(world(model={"trainingJobRef": {"name": "spam"}}))[2]


def test_an_installation_without_storage_needs_it_in_the_spec() -> None:
    w = world()
    w.settings = type(w.settings)(worker_image="w", server_image="s", storage_uri="")
    state, reason, message = verdict(w)
    assert (state, reason) == ("False", "StorageUnsuitable")
    assert "storage: {uri: pvc://CLAIM/PATH}" in message
    both = {"output": {"storage": {"uri": "pvc://mail/m"}}, "checkpoint": {"storage": {"uri": "pvc://mail/c"}}}
    w = world(**both)
    w.settings = type(w.settings)(worker_image="w", server_image="s", storage_uri="")
    w.settle(training.reconcile, KEY)
    assert JOB in w.objects


def test_a_job_of_an_earlier_life_is_waited_for() -> None:
    old = {
        "kind": "Job",
        "metadata": {
            "name": "spam",
            "deletionTimestamp": "2027-01-15T08:00:00Z",
            "ownerReferences": [{"kind": "TrainingJob", "name": "spam", "uid": "an-earlier-one", "controller": True}],
        },
        "spec": {},
    }
    w = world(old)
    w.settle(training.reconcile, KEY)
    found = condition(w.objects[KEY]["status"], "Admitted")
    assert (found["status"], found["reason"]) == ("False", "NameTaken")
    assert "is still being deleted" in found["message"]
    del w.objects[JOB]
    w.settle(training.reconcile, KEY)
    assert JOB in w.objects


def test_two_secrets_for_one_variable_are_named_with_their_fields() -> None:
    w = world(
        data={"uri": "hf://datasets/org/rows/a.jsonl", "secretRef": {"name": "one"}},
        model={"uri": "hf://org/base", "secretRef": {"name": "two"}},
    )
    state, reason, message = verdict(w)
    assert (state, reason) == ("False", "SettingsInvalid")
    assert "spec.data.secretRef.name is one and spec.model.secretRef.name is two" in message
    assert "HF_TOKEN" in message


def test_training_state_to_go_on_from_is_waited_for() -> None:
    resume = {"resumeFrom": {"trainingJobRef": {"name": "earlier"}}}
    assert verdict(world(checkpoint=resume))[1] == "CheckpointNotFound"
    assert "this job itself" in verdict(world(checkpoint={"resumeFrom": {"trainingJobRef": {"name": "spam"}}}))[2]
    earlier = training_job("earlier")
    w = world(earlier, checkpoint=resume)
    assert "which has no checkpoint yet" in verdict(w, "Admitted")[2]
    uri = "pvc://kubeformer/checkpoints/earlier-x/step-00000007"
    w = world(earlier | {"status": {"checkpoint": {"uri": uri}}}, checkpoint=resume)
    w.settle(training.reconcile, KEY)
    assert JOB in w.objects
    assert w.objects[KEY]["status"]["resolved"]["resumeUri"] == "pvc://kubeformer/checkpoints/earlier-x"

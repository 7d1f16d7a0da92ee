"""What goes wrong with a TrainingJob, and what its status makes of it."""

from typing import Any

import pytest

from kubeformer import training
from tests.unit.training.builders import (
    JOB,
    KEY,
    at_step,
    running,
    said,
    saved,
    status,
    world,
)
from tests.unit.world import START, condition


@pytest.mark.parametrize(
    ("reason", "expected", "valid"),
    [
        ("DataNotFound", "DataNotFound", "False"),
        ("FieldNotFound", "FieldNotFound", "False"),
        ("ModelNotFound", "ModelNotFound", "False"),
        ("TrainingDiverged", "TrainingDiverged", "True"),
        ("SomethingNew", "Failed", "True"),
    ],
)
def test_a_job_that_cannot_work_says_so_in_the_words_of_the_worker(reason: str, expected: str, valid: str) -> None:
    w, pods = running()
    failure = {"reason": reason, "message": "data.uri is pvc://mail/spam.jsonl: no such file; upload it first."}
    w.end_pod(pods[0], 78, at_step(0, phase="Failed", failure=failure))
    w.end_job("spam", "Failed", "PodFailurePolicy")
    w.settle(training.reconcile, KEY)
    assert said(w, "Succeeded") == ("False", expected)
    assert condition(status(w), "Succeeded")["message"] == failure["message"]
    assert condition(status(w), "Valid")["status"] == valid
    assert w.events[-1].type == "Warning"


def test_too_many_faults_end_the_job_with_the_last_one_named() -> None:
    w, pods = running(recovery={"maxRestarts": 0})
    w.end_pod(pods[0], 137)
    w.end_job("spam", "Failed", "BackoffLimitExceeded")
    w.settle(training.reconcile, KEY)
    assert said(w, "Succeeded") == ("False", "MaxRestartsExceeded")
    assert "exit code 137" in condition(status(w), "Succeeded")["message"]
    assert "spec.recovery.maxRestarts (0)" in condition(status(w), "Succeeded")["message"]


def test_a_worker_that_has_given_up_takes_the_whole_job_along() -> None:
    w, pods = running(workers={"replicas": 2}, recovery={"maxRestarts": 3})
    assert w.objects[JOB]["spec"]["backoffLimit"] == 3
    failure = {"reason": "RestartsExhausted", "message": "the ranks failed more than 3 times"}
    w.end_pod(pods[1], 1, at_step(5, failure=failure, restarts=3))
    w.settle(training.reconcile, KEY)
    assert w.objects[JOB]["spec"]["backoffLimit"] == 0


def test_a_fault_is_counted_once_however_many_workers_felt_it() -> None:
    w, pods = running(workers={"replicas": 2})
    w.report_progress(pods[0], at_step(40, checkpoint=saved(30)))
    w.settle(training.reconcile, KEY)
    w.now += 60
    w.report_progress(pods[0], at_step(41, restarts=1, phase="Starting"))
    w.end_pod(pods[1], 137)
    w.settle(training.reconcile, KEY)
    found = status(w)
    assert found["workers"]["restarts"] == 1
    assert said(w, "Succeeded") == ("Unknown", "Restarting")
    assert [a.get("toStep") for a in found["attempts"]] == [40, None]
    assert found["attempts"][1]["fromStep"] == 30
    w.start_workers("spam")
    w.settle(training.reconcile, KEY)
    assert len(status(w)["attempts"]) == 2


def test_figures_stay_while_restarted_workers_have_nothing_to_say_yet() -> None:
    w, pods = running()
    w.report_progress(pods[0], at_step(40))
    w.settle(training.reconcile, KEY)
    w.report_progress(pods[0], at_step(0, phase="Preparing", metrics={}, epochs=[], heartbeat_time=START + 50))
    w.settle(training.reconcile, KEY)
    assert status(w)["progress"]["summary"] == "40/100"
    assert status(w)["progress"]["phase"] == "Preparing"
    assert status(w)["metrics"]


def test_a_job_that_somebody_deleted_is_made_again_when_its_workers_have_ended() -> None:
    w, _ = running()
    pods = [key for key in w.objects if key.kind == "Pod"]
    del w.objects[JOB]  # with --cascade=orphan, say
    w.settle(training.reconcile, KEY)
    assert JOB not in w.objects
    for key in pods:
        w.delete(key)
    w.settle(training.reconcile, KEY)
    assert JOB in w.objects


def test_a_foreign_job_of_the_name_is_not_touched() -> None:
    foreign = {"kind": "Job", "metadata": {"name": "spam"}, "spec": {}}
    w = world(foreign)
    w.settle(training.reconcile, KEY)
    assert said(w, "Valid") == ("False", "NameTaken")
    assert "delete it, or use another name" in condition(status(w), "Valid")["message"]


def test_silence_and_hanging_are_told_apart() -> None:
    w, pods = running(recovery={"hangTimeoutSeconds": 60})
    w.report_progress(pods[0], at_step(10, heartbeat_time=w.now))
    w.settle(training.reconcile, KEY)
    w.now += 90
    w.report_progress(pods[0], at_step(10, heartbeat_time=w.now - 90))  # the launcher answers, training does not
    w.settle(training.reconcile, KEY)
    assert said(w, "Progressing") == ("False", "Hanging")
    plan = w.plan(training.reconcile, KEY)
    assert plan.look_again_at is not None
    w.now = plan.look_again_at  # nobody has answered since
    w.settle(training.reconcile, KEY)
    assert said(w, "Progressing") == ("False", "Silent")


@pytest.mark.parametrize(
    ("pod_status", "reason"),
    [
        (
            {
                "phase": "Pending",
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}
                ],
            },
            "Unschedulable",
        ),
        (
            {
                "phase": "Pending",
                "containerStatuses": [{"image": "nope:1", "state": {"waiting": {"reason": "ImagePullBackOff"}}}],
            },
            "ImagePullFailed",
        ),
        (
            {
                "phase": "Pending",
                "containerStatuses": [{"state": {"waiting": {"reason": "CreateContainerConfigError"}}}],
            },
            "ContainerFailed",
        ),
    ],
)
def test_what_keeps_a_pod_from_starting_is_said(pod_status: dict[str, Any], reason: str) -> None:
    w = world()
    w.settle(training.reconcile, KEY)
    w.start_workers("spam", phase="Pending")
    next(body for key, body in w.objects.items() if key.kind == "Pod")["status"] = pod_status
    w.settle(training.reconcile, KEY)
    assert said(w, "Running") == ("False", reason)
    assert said(w, "Succeeded") == ("Unknown", reason)


def test_the_deadline_names_the_field() -> None:
    w, pods = running(activeDeadlineSeconds=60)
    assert w.objects[JOB]["spec"]["activeDeadlineSeconds"] == 60
    w.end_pod(pods[0], 143)
    w.end_job("spam", "Failed", "DeadlineExceeded")
    w.settle(training.reconcile, KEY)
    assert said(w, "Succeeded") == ("False", "DeadlineExceeded")
    assert "spec.activeDeadlineSeconds (60)" in condition(status(w), "Succeeded")["message"]


def test_a_spec_that_this_operator_cannot_read_is_said_and_touches_nothing() -> None:
    w, _ = running()
    w.objects[KEY]["spec"]["task"] = {"imageClassification": {}}
    plan = w.settle(training.reconcile, KEY)
    assert plan.actions == ()
    found = condition(w.objects[KEY]["status"], "Valid")
    assert (found["status"], found["reason"]) == ("False", "SettingsInvalid")
    assert condition(w.objects[KEY]["status"], "Running")["status"] == "True"

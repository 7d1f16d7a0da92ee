"""Deleting a TrainingJob takes everything along but its published model, and is never held up for ever."""

import pytest

from kubeformer import training
from kubeformer.kit.view import Key
from tests.unit.training.builders import JOB, KEY, running, succeed, world
from tests.unit.world import NAMESPACE, START, World

CLEANUP = Key("Job", NAMESPACE, "spam-cleanup")
STORAGE = Key("PersistentVolumeClaim", NAMESPACE, "kubeformer")


def left(w: World) -> set[str]:
    return {f"{key.kind}/{key.name}" for key in w.objects if key.kind != "Node"}


def stop_pods(w: World) -> None:
    for key in [key for key in w.objects if key.kind == "Pod"]:
        w.delete(key)


def test_checkpoints_go_after_the_workers_and_then_everything_but_the_storage() -> None:
    w, pods = running()
    succeed(w, pods)
    w.settle(training.reconcile, KEY)
    w.delete(KEY)
    w.settle(training.reconcile, KEY)
    container = w.objects[CLEANUP]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == [
        "python",
        "-m",
        "kubeformer_runtime.launcher.cleanup",
        "/mnt/claims",
        w.objects[KEY]["status"]["resolved"]["checkpointUri"].replace("pvc://", "/mnt/claims/"),
        "--unfinished",
        "/mnt/claims/kubeformer/models/spam",
    ]
    assert KEY in w.objects
    w.end_job("spam-cleanup", "Complete")
    w.settle(training.reconcile, KEY)
    assert left(w) == {"PersistentVolumeClaim/mail", "PersistentVolumeClaim/kubeformer"}


def test_the_clean_up_waits_for_workers_that_still_save() -> None:
    w, _ = running()
    pods = {key: body for key, body in w.objects.items() if key.kind == "Pod"}
    w.delete(KEY)
    w.carry_out(KEY, w.plan(training.reconcile, KEY))
    assert JOB not in w.objects
    w.objects.update(pods)  # gone as objects of the Job, but still ending
    w.settle(training.reconcile, KEY)
    assert CLEANUP not in w.objects
    stop_pods(w)
    w.settle(training.reconcile, KEY)
    assert CLEANUP in w.objects


def test_a_job_that_never_ran_is_let_go_at_once() -> None:
    w = world()
    w.settle(training.reconcile, KEY)
    w.delete(KEY)
    w.settle(training.reconcile, KEY)
    assert left(w) == {"PersistentVolumeClaim/mail", "PersistentVolumeClaim/kubeformer"}


@pytest.mark.parametrize("state", ["gone", "going"])
def test_a_claim_that_is_gone_or_going_has_nothing_to_clean(state: str) -> None:
    w, _ = running()
    if state == "gone":
        del w.objects[STORAGE]
    else:  # as when the whole namespace is deleted
        w.objects[STORAGE]["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    w.delete(KEY)
    w.settle(training.reconcile, KEY)
    assert KEY not in w.objects
    assert CLEANUP not in w.objects


def test_a_clean_up_that_fails_lets_go_and_says_what_is_left() -> None:
    w, _ = running()
    w.delete(KEY)
    w.settle(training.reconcile, KEY)
    w.end_job("spam-cleanup", "Failed", "BackoffLimitExceeded")
    plan = w.plan(training.reconcile, KEY)
    assert plan.finalizers == ()
    (event,) = plan.events
    assert event.reason == "CleanupFailed"
    assert "pvc://kubeformer/checkpoints/spam-" in event.message
    w.settle(training.reconcile, KEY)
    assert left(w) == {"PersistentVolumeClaim/mail", "PersistentVolumeClaim/kubeformer"}


def test_a_clean_up_that_never_ends_is_given_up_at_a_time_that_was_announced() -> None:
    w, _ = running()
    w.delete(KEY)
    plan = w.settle(training.reconcile, KEY)
    while plan.look_again_at is not None and w.now < START + 10_000:
        w.now = plan.look_again_at
        plan = w.settle(training.reconcile, KEY)
    assert w.now == START + 2 * w.settings.cleanup_seconds
    assert KEY not in w.objects


def test_the_spec_is_not_needed_to_clean_up() -> None:
    w, _ = running()
    w.objects[KEY]["spec"] = {"task": {"unheardOf": {}}}
    w.delete(KEY)
    w.settle(training.reconcile, KEY)
    assert CLEANUP in w.objects


def test_the_finalizers_of_others_stay() -> None:
    w, _ = running()
    w.objects[KEY]["metadata"]["finalizers"].append("example.com/theirs")
    w.delete(KEY)
    w.settle(training.reconcile, KEY)
    w.end_job("spam-cleanup", "Complete")
    w.settle(training.reconcile, KEY)
    assert w.objects[KEY]["metadata"]["finalizers"] == ["example.com/theirs"]

"""A TrainingJob from `kubectl apply` to its end, played against a model of the cluster."""

from kubeformer import training
from kubeformer.contract.job import JobSettings
from kubeformer.kit.plan import Apply, Delete
from kubeformer.kit.view import Key
from tests.unit.training.builders import (
    JOB,
    KEY,
    at_step,
    epoch,
    finished,
    running,
    said,
    saved,
    status,
    succeed,
    training_job,
    world,
)
from tests.unit.world import NAMESPACE, START


def test_what_was_resolved_is_written_down_before_anything_is_made() -> None:
    w = world()
    first = w.plan(training.reconcile, KEY)
    assert first.actions == ()
    assert first.finalizers == ("kubeformer.dev/checkpoints",)
    assert first.status is not None
    assert first.status["resolved"]["learningRate"] == "0.001"
    assert first.status["startTime"]


def test_a_minimal_job_gets_settings_a_service_its_storage_and_an_indexed_job() -> None:
    w = world()
    w.settle(training.reconcile, KEY)
    made = {(key.kind, key.name) for key in w.objects} - {("Node", "node1"), ("Node", "node2")}
    settings = next(name for kind, name in made if kind == "ConfigMap")
    assert made == {
        ("PersistentVolumeClaim", "mail"),
        ("PersistentVolumeClaim", "kubeformer"),
        ("TrainingJob", "spam"),
        ("ConfigMap", settings),
        ("Service", "spam-workers"),
        ("Job", "spam"),
    }
    text = w.objects[Key("ConfigMap", NAMESPACE, settings)]["data"]["settings.json"]
    document = JobSettings.model_validate_json(text)
    assert document.data.source.path == "/mnt/claims/mail/spam-*.jsonl"
    assert document.output.location.uri == "pvc://kubeformer/models/spam"
    assert document.checkpoint.directory.startswith("/mnt/claims/kubeformer/checkpoints/spam-")
    assert document.training.epochs == 3
    assert document.model.architecture is not None


def test_planning_again_changes_nothing() -> None:
    w, pods = running()
    w.report_progress(pods[0], at_step(10))
    w.settle(training.reconcile, KEY)
    before = {key: body["metadata"]["resourceVersion"] for key, body in w.objects.items()}
    w.settle(training.reconcile, KEY)
    assert {key: body["metadata"]["resourceVersion"] for key, body in w.objects.items()} == before


def test_progress_metrics_epochs_and_checkpoint_come_from_worker_zero() -> None:
    w, pods = running(workers={"replicas": 2})
    w.report_progress(pods[1], at_step(99, rank=1))
    w.report_progress(pods[0], at_step(40, epochs=[epoch(1)], checkpoint=saved(30)))
    w.settle(training.reconcile, KEY)
    found = status(w)
    assert found["progress"]["summary"] == "40/100"
    assert found["progress"]["percent"] == 40
    assert found["progress"]["eta"] == "30s"  # 60 steps at 500 ms
    assert found["metrics"] == [{"name": "train/loss", "value": "0.5"}]
    assert found["epochs"][0]["validationAccuracy"] == "0.9"
    assert found["checkpoint"]["step"] == 30
    assert found["resolved"]["facts"][0] == {"name": "parameters", "value": "1000"}
    assert said(w, "Succeeded") == ("Unknown", "Training")
    assert said(w, "Running") == ("True", "Accepted")
    assert said(w, "Checkpointed") == ("True", "CheckpointSaved")


def test_before_the_first_epoch_the_time_left_follows_from_steps_between_two_looks() -> None:
    w, pods = running()
    w.report_progress(pods[0], at_step(10))
    w.settle(training.reconcile, KEY)
    assert "eta" not in status(w)["progress"]  # the time until the first steps says nothing of the rest
    w.report_progress(pods[0], at_step(30, heartbeat_time=START + 50))
    w.settle(training.reconcile, KEY)
    assert status(w)["progress"]["eta"] == "2m20s"  # 20 steps took 40 s, 70 are left


def test_workers_that_have_all_ended_well_are_not_waited_for() -> None:
    w, pods = running(workers={"replicas": 2})
    for uid in pods:
        w.end_pod(uid, 0, finished())
    w.objects[JOB]["status"]["succeeded"] = 0  # the Job's own count comes later
    w.settle(training.reconcile, KEY)
    assert said(w, "Succeeded") == ("Unknown", "Publishing")


def test_a_change_of_figures_alone_may_wait_and_a_new_checkpoint_may_not() -> None:
    w, pods = running()
    w.report_progress(pods[0], at_step(10))
    w.settle(training.reconcile, KEY)
    w.report_progress(pods[0], at_step(20, phase="Evaluating"))
    assert w.plan(training.reconcile, KEY).coalesce_status
    w.report_progress(pods[0], at_step(20, checkpoint=saved(20)))
    assert not w.plan(training.reconcile, KEY).coalesce_status


def test_running_pods_are_polled_by_address_until_the_end() -> None:
    w, pods = running(workers={"replicas": 2})
    assert [uid for uid, _ in w.plan(training.reconcile, KEY).poll] == pods
    succeed(w, pods)
    w.settle(training.reconcile, KEY)
    assert w.plan(training.reconcile, KEY).poll == ()


def test_success_publishes_an_artifact_and_nothing_is_written_afterwards() -> None:
    w, pods = running()
    succeed(w, pods)
    w.settle(training.reconcile, KEY)
    found = status(w)
    assert said(w, "Succeeded") == ("True", "Completed")
    assert said(w, "Finished") == ("True", "Completed")
    assert found["artifacts"][0]["uri"] == "pvc://kubeformer/models/spam"
    assert found["artifacts"][0]["metrics"] == [{"name": "validation/accuracy", "value": "0.97"}]
    assert found["progress"]["phase"] == "Succeeded"
    assert "eta" not in found["progress"]
    assert [event.reason for event in w.events] == ["Started", "Completed"]
    w.now += 1e6
    assert w.plan(training.reconcile, KEY).actions == ()
    assert w.plan(training.reconcile, KEY).status == found


def test_the_end_waits_for_the_last_words_of_the_pods() -> None:
    w, _ = running()
    w.end_job("spam", "Complete")  # the Job's news came before the pod's
    w.objects[JOB]["status"]["conditions"][0]["lastTransitionTime"] = "2027-01-15T08:00:00Z"
    w.settle(training.reconcile, KEY)
    assert said(w, "Finished") == ("False", "NotFinished")
    plan = w.plan(training.reconcile, KEY)
    assert plan.look_again_at is not None
    w.now = plan.look_again_at
    w.settle(training.reconcile, KEY)
    assert said(w, "Succeeded") == ("True", "Completed")


def test_suspension_stops_the_job_and_resumption_goes_on_with_the_same_one() -> None:
    w, pods = running(activeDeadlineSeconds=1000)
    w.report_progress(pods[0], at_step(40, checkpoint=saved(40)))
    w.settle(training.reconcile, KEY)
    w.now += 300
    w.edit(KEY, suspend=True)
    w.settle(training.reconcile, KEY)
    assert w.objects[JOB]["spec"]["suspend"] is True
    assert said(w, "Suspended") == ("False", "Suspending")
    for key in [k for k in w.objects if k.kind == "Pod"]:
        w.delete(key)
    w.objects[JOB]["status"].update(active=0, ready=0)
    w.settle(training.reconcile, KEY)
    assert said(w, "Suspended") == ("True", "Suspended")
    assert said(w, "Succeeded") == ("Unknown", "Suspended")
    assert status(w)["progress"]["summary"] == "40/100"
    w.now += 10_000  # time in suspension does not count
    w.edit(KEY, suspend=False)
    w.settle(training.reconcile, KEY)
    assert w.objects[JOB]["spec"]["suspend"] is False
    assert w.objects[JOB]["spec"]["activeDeadlineSeconds"] == 700
    w.start_workers("spam")
    w.settle(training.reconcile, KEY)
    assert [a["number"] for a in status(w)["attempts"]] == [1, 2]
    assert status(w)["attempts"][1]["fromStep"] == 40
    assert status(w)["workers"]["restarts"] == 0


def test_a_job_that_is_suspended_from_the_beginning_makes_nothing_until_it_may() -> None:
    w = world(suspend=True)
    w.settle(training.reconcile, KEY)
    assert JOB not in w.objects
    assert said(w, "Suspended") == ("True", "Suspended")
    assert said(w, "Valid") == ("True", "Accepted")
    assert "startTime" not in status(w)
    w.edit(KEY, suspend=False)
    w.settle(training.reconcile, KEY)
    assert JOB in w.objects


def test_new_checkpoint_settings_hold_from_the_next_start() -> None:
    w, _ = running()
    before = w.objects[JOB]["metadata"]["uid"]
    w.edit(KEY, checkpoint={"intervalSeconds": 5})
    w.settle(training.reconcile, KEY)
    assert w.objects[JOB]["metadata"]["uid"] == before  # what runs is left alone
    w.edit(KEY, suspend=True)
    w.settle(training.reconcile, KEY)
    assert JOB not in w.objects  # its template can take no other settings, so it goes
    for key in [k for k in w.objects if k.kind == "Pod"]:
        w.delete(key)
    w.edit(KEY, suspend=False)
    w.settle(training.reconcile, KEY)
    assert w.objects[JOB]["metadata"]["uid"] != before
    assert len([k for k in w.objects if k.kind == "ConfigMap"]) == 1  # and the old settings went too


def test_an_upgrade_of_the_operator_leaves_running_jobs_alone() -> None:
    w, _ = running()
    before = w.objects[JOB]
    w.settings = type(w.settings)(worker_image="registry.local/runtime:2", server_image="x", image_pull_policy="Always")
    w.settle(training.reconcile, KEY)
    assert w.objects[JOB] == before


def test_a_finished_job_is_deleted_after_its_time_to_live() -> None:
    w, pods = running(ttlSecondsAfterFinished=600)
    succeed(w, pods)
    w.settle(training.reconcile, KEY)
    plan = w.plan(training.reconcile, KEY)
    assert plan.look_again_at == START + 600
    w.now = START + 600
    (action,) = w.plan(training.reconcile, KEY).actions
    assert isinstance(action, Delete)
    assert action.key == KEY


def test_a_lost_status_is_made_again_without_touching_the_job() -> None:
    w, pods = running()
    w.report_progress(pods[0], at_step(10))
    job = w.objects[JOB]
    del w.objects[KEY]["status"]
    w.settle(training.reconcile, KEY)
    assert status(w)["progress"]["step"] == 10
    assert w.objects[JOB] == job


def test_gangs_are_used_where_the_api_server_has_them() -> None:
    w = world(workers={"replicas": 2})
    w.settings = type(w.settings)(worker_image="w", server_image="s", gangs=True)
    w.settle(training.reconcile, KEY)
    group = w.objects[Key("PodGroup", NAMESPACE, "spam")]
    assert group["spec"]["schedulingPolicy"]["gang"]["minCount"] == 2
    assert w.objects[JOB]["spec"]["template"]["spec"]["schedulingGroup"] == {"podGroupName": "spam"}


def test_training_goes_on_from_what_another_job_published() -> None:
    base = training_job("base")
    w = world(base, model={"trainingJobRef": {"name": "base"}})
    plan = w.settle(training.reconcile, KEY)
    assert said(w, "Admitted") == ("False", "WaitingForModel")
    assert said(w, "Valid") == ("True", "Accepted")
    assert Key("TrainingJob", NAMESPACE, "base") in plan.depends_on
    w.objects[Key("TrainingJob", NAMESPACE, "base")]["status"] = {
        "artifacts": [{"uri": "pvc://kubeformer/models/base", "digest": "sha256:ab", "step": 7}]
    }
    w.settle(training.reconcile, KEY)
    settings = next(body for key, body in w.objects.items() if key.kind == "ConfigMap")
    document = JobSettings.model_validate_json(settings["data"]["settings.json"])
    assert document.model.base is not None
    assert (document.model.base.path, document.model.base.digest) == ("/mnt/claims/kubeformer/models/base", "sha256:ab")
    assert document.training.learning_rate == 5e-5


def test_the_shared_claim_is_never_changed_and_belongs_to_nobody() -> None:
    w = world()
    w.plan(training.reconcile, KEY)
    w.carry_out(KEY, w.plan(training.reconcile, KEY))
    applied = [a for a in w.plan(training.reconcile, KEY).actions if isinstance(a, Apply)]
    claim = next(a for a in applied if a.body["kind"] == "PersistentVolumeClaim")
    assert claim.only_if_absent
    assert "ownerReferences" not in claim.body["metadata"]
    assert claim.body["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_status_stays_small_whatever_workers_say() -> None:
    import json

    w, pods = running()
    long = {f"metric/{'x' * 200}-{i}": float("nan") for i in range(200)}
    facts: dict[str, str | int | float] = {f"fact-{i}": "y" * 1000 for i in range(200)}
    w.report_progress(
        pods[0],
        at_step(10**12, metrics=long, resolved=facts, epochs=[epoch(i) for i in range(1, 200)], heartbeat_time=1e300),
    )
    w.settle(training.reconcile, KEY)
    assert len(json.dumps(status(w))) < 32_000
    assert len(status(w)["epochs"]) == 20
    assert finished().artifact is not None

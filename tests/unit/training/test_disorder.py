"""Whatever the cluster looks like, planning for a TrainingJob raises nothing, comes to rest, and says known words."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeformer import training
from kubeformer.api.conditions import JobCondition, JobReason
from kubeformer.api.training_job import TrainingJob
from tests.unit import disorder
from tests.unit.disorder import JSON, children, disorderly_world, mixed
from tests.unit.training.builders import KEY, training_job
from tests.unit.world import World

Object = dict[str, Any]
UID = "primary-uid"

SPECS = st.fixed_dictionaries(
    {},
    optional={
        "task": st.sampled_from([{"textClassification": {}}, {"languageModel": {"sequenceLength": 64}}]),
        "model": st.sampled_from(
            [
                {"architecture": {"layers": 1, "width": 32, "heads": 2}},
                {"uri": "pvc://mail/base"},
                {"trainingJobRef": {"name": "base"}},
            ]
        ),
        "data": st.sampled_from(
            [
                {"uri": "pvc://alone/a-*.jsonl", "test": {"uri": "configmap://rows/test.jsonl"}},
                {"uri": "configmap://rows/a.jsonl", "validation": {"uri": "pvc://mail/b.csv"}},
            ]
        ),
        "training": st.sampled_from([{"steps": 5}, {"epochs": 2, "learningRate": 3e-4, "optimizer": {"type": "SGD"}}]),
        "workers": st.sampled_from(
            [{"replicas": 2, "processesPerWorker": 2}, {"resources": {"limits": {"cpu": "64"}}}]
        ),
        "output": st.just({"storage": {"uri": "pvc://mail/out"}}),
        "checkpoint": st.just({"storage": {"uri": "pvc://alone/ckpt"}, "keep": 1}),
        "recovery": st.just({"maxRestarts": 0, "hangTimeoutSeconds": 5}),
        "suspend": st.booleans(),
        "activeDeadlineSeconds": st.just(5),
        "ttlSecondsAfterFinished": st.sampled_from([0, 100]),
        "pod": st.just({"env": [{"name": "A", "value": "b"}], "sharedMemory": "1Gi", "nodeSelector": {"a": "b"}}),
    },
)
STATUSES = mixed(
    startTime=disorder.TIMES,
    completionTime=disorder.TIMES,
    conditions=disorder.conditions(*JobCondition),
    resolved=mixed(
        checkpointUri=st.just("pvc://kubeformer/checkpoints/spam-x"),
        outputUri=st.just("pvc://kubeformer/models/spam"),
        learningRate=st.just("0.001"),
        epochs=st.just(3),
    ),
    workers=mixed(restarts=disorder.COUNTS),
    progress=mixed(step=disorder.COUNTS, updateTime=disorder.TIMES, eta=st.just("5s")),
    attempts=st.lists(mixed(number=disorder.COUNTS, startTime=disorder.TIMES, endTime=disorder.TIMES), max_size=2),
    checkpoint=mixed(step=disorder.COUNTS, time=disorder.TIMES),
    epochs=st.lists(mixed(epoch=disorder.COUNTS), max_size=2),
    artifacts=st.lists(mixed(digest=st.just("d"), uri=st.just("pvc://a/b")), max_size=2),
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    job = training_job(**draw(SPECS))
    if draw(st.integers(0, 9)) == 0:
        job["spec"] = draw(JSON)  # what an older schema let in
    job["metadata"] |= {"uid": UID, "finalizers": draw(st.sampled_from([[], ["kubeformer.dev/checkpoints", "theirs"]]))}
    if draw(st.integers(0, 3)) == 0:
        job["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    if draw(st.booleans()):
        job["status"] = draw(STATUSES | JSON)
    base = training_job("base") | {"status": draw(STATUSES | JSON)}
    return disorderly_world(draw, job, [*draw(children("TrainingJob", "spam", UID)), base])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(worlds())
def test_planning_never_raises_and_comes_to_rest(world: World) -> None:
    plan = world.settle(training.reconcile, KEY)
    again = world.plan(training.reconcile, KEY)
    assert (again.actions, again.status, again.finalizers) == (plan.actions, plan.status, plan.finalizers)
    if plan.status is not None:
        json.dumps(plan.status, allow_nan=False)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(worlds())
def test_what_is_said_is_in_the_words_of_the_api(world: World) -> None:
    world.objects[KEY].pop("status", None)  # a status that somebody wrote by hand may hold anything
    plan = world.plan(training.reconcile, KEY)
    for _ in range(3):
        if plan.status is None:
            return
        if isinstance(world.objects[KEY]["spec"], dict) and "task" in world.objects[KEY]["spec"]:
            TrainingJob.parse({**world.objects[KEY], "status": plan.status})
        for condition in plan.status["conditions"]:
            assert condition["type"] in set(JobCondition)
            assert condition["reason"] in set(JobReason)
            assert condition["message"]
        world.carry_out(KEY, plan)
        plan = world.plan(training.reconcile, KEY)

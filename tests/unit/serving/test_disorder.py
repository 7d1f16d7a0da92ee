"""Whatever the cluster looks like, planning for a ModelDeployment raises nothing and comes to rest."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeformer import serving
from kubeformer.api.conditions import DeploymentCondition, DeploymentReason
from kubeformer.api.model_deployment import ModelDeployment
from tests.unit import disorder
from tests.unit.disorder import JSON, children, disorderly_world, mixed
from tests.unit.serving.builders import KEY, model_deployment, trained
from tests.unit.world import World

Object = dict[str, Any]
UID = "primary-uid"

SPECS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(
            [
                {"uri": "pvc://mail/model"},
                {"trainingJobRef": {"name": "spam"}, "servedNames": ["spam", "rival"]},
                {"trainingJobRef": {"name": "nobody"}},
            ]
        ),
        "replicas": st.integers(0, 3),
        "engine": st.just({"dtype": "BFloat16", "maxModelLength": 64}),
        "resources": st.sampled_from([{"limits": {"nvidia.com/gpu": 1}}, {"requests": {"cpu": "1"}}]),
        "rollout": st.just({"maxSurge": 0, "maxUnavailable": 1}),
        "drainSeconds": st.just(0),
        "sampling": st.just({"temperature": 0.0}),
    },
)
STATUSES = mixed(
    conditions=disorder.conditions(*DeploymentCondition),
    resolved=mixed(image=st.just("i:1"), modelUri=st.just("pvc://kubeformer/models/spam"), modelDigest=st.just("d")),
    lineage=mixed(trainingJob=st.sampled_from(["spam", "nobody"])),
    revisions=st.lists(mixed(name=st.just("old"), replicas=disorder.COUNTS), max_size=2),
    observedGeneration=disorder.COUNTS,
)
ARTIFACTS = st.lists(
    mixed(uri=st.sampled_from(["pvc://kubeformer/models/spam", "s3://x"]), digest=st.just("d"), step=disorder.COUNTS),
    max_size=2,
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    body = model_deployment(**draw(SPECS))
    if draw(st.integers(0, 9)) == 0:
        body["spec"] = draw(JSON)  # what an older schema let in
    body["metadata"]["uid"] = UID
    if draw(st.integers(0, 5)) == 0:
        body["metadata"] |= {"deletionTimestamp": "2027-01-15T08:00:00Z", "finalizers": ["theirs"]}
    if draw(st.booleans()):
        body["status"] = draw(STATUSES | JSON)
    others = draw(children("ModelDeployment", "spam", UID))
    if draw(st.booleans()):
        others.append(trained(artifacts=draw(ARTIFACTS | JSON)))
    rival = model_deployment("rival", model=draw(st.sampled_from([{"servedNames": ["spam"]}, {}]) | JSON))
    return disorderly_world(draw, body, [*others, rival])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(worlds())
def test_planning_never_raises_and_comes_to_rest(world: World) -> None:
    plan = world.settle(serving.reconcile, KEY)
    again = world.plan(serving.reconcile, KEY)
    assert (again.actions, again.status, again.finalizers) == (plan.actions, plan.status, plan.finalizers)
    if plan.status is not None:
        json.dumps(plan.status, allow_nan=False)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(worlds())
def test_what_is_said_is_in_the_words_of_the_api(world: World) -> None:
    world.objects[KEY].pop("status", None)
    plan = world.plan(serving.reconcile, KEY)
    for _ in range(3):
        if plan.status is None:
            return
        if isinstance(world.objects[KEY]["spec"], dict) and "model" in world.objects[KEY]["spec"]:
            ModelDeployment.parse({**world.objects[KEY], "status": plan.status})
        for condition in plan.status["conditions"]:
            assert condition["type"] in set(DeploymentCondition)
            assert condition["reason"] in set(DeploymentReason)
            assert condition["message"]
        world.carry_out(KEY, plan)
        plan = world.plan(serving.reconcile, KEY)

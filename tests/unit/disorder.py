"""Disorder: hypothesis strategies for clusters in any state, for tests that planners cope with all of them.

Objects are made of plausible pieces and of arbitrary JSON where others write: in status, in annotations, in
what workers report. Their names, owners and labels are drawn from those that planners look for, so that they meet.
"""

from typing import Any

from hypothesis import strategies as st

from kubeformer.contract import names
from kubeformer.kit.view import Report
from tests.unit.world import NAMESPACE, START, World

Object = dict[str, Any]

TIMES = st.sampled_from(["2027-01-15T08:00:00Z", "2027-01-15T08:00:30Z", "2020-01-01T00:00:00+02:00", "soon", ""])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats(allow_nan=False) | st.text(max_size=5) | TIMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def mixed(**pieces: st.SearchStrategy[Any]) -> st.SearchStrategy[Object]:
    """Any of the pieces, each as it should be or as arbitrary JSON."""
    return st.fixed_dictionaries({}, optional={name: piece | JSON for name, piece in pieces.items()})


def conditions(*kinds: str) -> st.SearchStrategy[Any]:
    """A list of conditions of some kinds."""
    one = mixed(
        type=st.sampled_from(kinds),
        status=st.sampled_from(["True", "False", "Unknown"]),
        reason=st.sampled_from(["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy", "Unschedulable"]),
        message=st.text(max_size=5),
        lastTransitionTime=TIMES,
    )
    return st.lists(one, max_size=3)


COUNTS = st.integers(0, 3)
JOB_STATUS = mixed(
    active=COUNTS, failed=COUNTS, succeeded=COUNTS, startTime=TIMES, conditions=conditions("Complete", "Failed")
)
DEPLOYMENT_STATUS = mixed(
    observedGeneration=COUNTS,
    replicas=COUNTS,
    readyReplicas=COUNTS,
    updatedReplicas=COUNTS,
    conditions=conditions("Progressing", "Available"),
)
MESSAGES = st.sampled_from(
    [
        "",
        "{",
        "Traceback",
        '{"phase": "Failed", "failure": {"reason": "DataNotFound", "message": "no rows"}}',
        '{"phase": "Succeeded", "step": 9, "artifact": {"uri": "pvc://a/b", "digest": "d", "step": 9}}',
        '{"reason": "ModelNotFound", "message": "no model"}',
        '{"failure": 3}',
    ]
)
STATE = mixed(
    waiting=mixed(reason=st.sampled_from(["ErrImagePull", "CrashLoopBackOff", "CreateContainerError"])),
    running=st.just({}),
    terminated=mixed(exitCode=st.sampled_from([0, 1, 78, 137, 143]), message=MESSAGES, finishedAt=TIMES),
)
POD_STATUS = mixed(
    phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
    podIP=st.just("10.0.0.1"),
    startTime=TIMES,
    conditions=conditions("PodScheduled", "Ready"),
    containerStatuses=st.lists(mixed(ready=st.booleans(), state=STATE, lastState=STATE), max_size=2),
)
PROGRESS = mixed(
    phase=st.sampled_from(["Starting", "Preparing", "Training", "Evaluating", "Stopped", "Failed", "Succeeded"]),
    step=st.integers(-1, 2**40),
    totalSteps=st.integers(0, 100),
    metrics=st.dictionaries(st.text(max_size=5), st.floats(), max_size=2),
    restarts=COUNTS,
    heartbeatTime=st.floats(START - 1e4, START + 10),
    startTime=st.floats(),
    epochs=st.lists(
        st.fixed_dictionaries(
            {"epoch": COUNTS, "loss": st.floats(), "seconds": st.floats(), "stepMilliseconds": st.floats()}
        ),
        max_size=2,
    ),
    checkpoint=st.fixed_dictionaries(
        {"step": COUNTS, "time": st.floats(), "digest": st.just("d"), "path": st.just("/x/step-1")}
    ),
    artifact=st.fixed_dictionaries({"uri": st.just("pvc://a/b"), "digest": st.just("d"), "step": COUNTS}),
    failure=st.fixed_dictionaries({"reason": st.just("RestartsExhausted"), "message": st.text(max_size=5)}),
)
MODES = st.lists(st.sampled_from(["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"]), max_size=2)


@st.composite
def children(draw: st.DrawFn, owner_kind: str, name: str, uid: str) -> list[Object]:
    """Any children, and neighbours that look like children, of a primary."""
    main = "Job" if owner_kind == "TrainingJob" else "Deployment"
    label = names.LABEL_TRAINING_JOB if owner_kind == "TrainingJob" else names.LABEL_MODEL_DEPLOYMENT
    owners = st.sampled_from([uid, "another-uid", ""])
    gone = st.sampled_from([None, None, "2027-01-15T08:00:10Z"])

    def metadata(own: str, owner: str, kind: str = owner_kind) -> Object:
        found: Object = {"name": own, "namespace": NAMESPACE, "labels": {label: name}}
        if owner:
            found["ownerReferences"] = [{"kind": kind, "name": name, "uid": owner, "controller": True}]
        deletion = draw(gone)
        return found | ({"deletionTimestamp": deletion} if deletion else {})

    found: list[Object] = []
    if draw(st.booleans()):
        status = draw(JOB_STATUS if main == "Job" else DEPLOYMENT_STATUS)
        spec = draw(mixed(suspend=st.booleans(), backoffLimit=COUNTS, replicas=COUNTS))
        found.append(
            {
                "kind": main,
                "metadata": metadata(name, draw(owners)) | {"uid": "main-uid"},
                "spec": spec,
                "status": status,
            }
        )
    if draw(st.booleans()):
        found.append(
            {"kind": "Job", "metadata": metadata(f"{name}-cleanup", ""), "spec": {}, "status": draw(JOB_STATUS)}
        )
    for index in range(draw(st.integers(0, 3))):
        pod = metadata(f"{name}-{index}", draw(st.sampled_from(["main-uid", "x"])), main)
        pod["labels"] = pod["labels"] | draw(
            st.fixed_dictionaries(
                {
                    names.LABEL_COMPONENT: st.sampled_from(["worker", "server", "cleanup"]),
                    "batch.kubernetes.io/job-completion-index": st.sampled_from(["0", "1", "x", ""]),
                }
            )
        )
        found.append({"kind": "Pod", "metadata": pod, "spec": {}, "status": draw(POD_STATUS)})
    for claim in ("mail", "kubeformer", "alone"):
        if draw(st.booleans()):
            claim_metadata = {"name": claim, "namespace": NAMESPACE}
            deletion = draw(gone)
            found.append(
                {
                    "kind": "PersistentVolumeClaim",
                    "metadata": claim_metadata | ({"deletionTimestamp": deletion} if deletion else {}),
                    "spec": {"accessModes": draw(MODES | JSON)},
                    "status": draw(mixed(phase=st.sampled_from(["Pending", "Bound", "Lost"]))),
                }
            )
    if draw(st.booleans()):
        found.append({"kind": "ConfigMap", "metadata": metadata(f"{name}-settings-old", draw(owners)), "data": {}})
    if draw(st.booleans()):
        allocatable = draw(mixed(cpu=st.just("2"), memory=st.just("8Gi")) | JSON)
        found.append({"kind": "Node", "metadata": {"name": "node1"}, "status": {"allocatable": allocatable}})
    return found


def disorderly_world(draw: st.DrawFn, primary: Object, others: list[Object]) -> World:
    """A world of these, with reports of pods, at any time."""
    world = World(*others, primary, now=START + draw(st.sampled_from([0, 30, 130, 5000])))
    for body in [b for key, b in world.objects.items() if key.kind == "Pod"]:
        if draw(st.booleans()):
            world.reports[body["metadata"]["uid"]] = Report(draw(PROGRESS | JSON), START)
    return world

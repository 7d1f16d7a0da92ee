"""World: a model of a cluster, as small as planners need, for the tests of training and serving.

It is a View made from raw API objects, carries out Plans as the loop would (server-side apply, deletion with
finalizers and owner references), and plays the Job and Deployment controllers where a test asks it to:

    world = World()
    world.add(training_job())
    world.settle(training.reconcile, key)      # plan and carry out until nothing is left to do
    world.start_workers("spam")
    world.report("spam", 0, Progress(...))
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kubeformer.contract import names
from kubeformer.contract.progress import Progress
from kubeformer.kit.child import Child, project
from kubeformer.kit.instants import rfc3339
from kubeformer.kit.plan import Apply, Event, Plan
from kubeformer.kit.settings import OperatorSettings
from kubeformer.kit.view import Key, Report

NAMESPACE = "lab"
START = 1_800_000_000.0  # when every world begins, seconds since the epoch
SETTINGS = OperatorSettings(
    worker_image="registry.local/runtime:1",
    server_image="registry.local/runtime:1",
    vllm_image="registry.local/vllm:1",
    gateway_url="http://gateway",
)
PRIMARIES = ("TrainingJob", "ModelDeployment")

Object = dict[str, Any]
Reconcile = Callable[["World", Key, OperatorSettings, float], Plan]


class World:
    """See the module's docstring. `now` is the clock; tests move it."""

    def __init__(self, *objects: Object, now: float = START, settings: OperatorSettings = SETTINGS) -> None:
        self.now = now
        self.settings = settings
        self.objects: dict[Key, Object] = {}
        self.reports: dict[str, Report] = {}
        self.events: list[Event] = []
        self._serial = 0
        for body in objects:
            self.add(body)

    # What a planner asks (View).

    def primary(self, key: Key) -> Mapping[str, Any] | None:
        return self.objects.get(key) if key.kind in PRIMARIES else None

    def primaries(self, kind: str) -> Sequence[Mapping[str, Any]]:
        return [body for key, body in self._sorted() if key.kind == kind]

    def every(self, kind: str) -> Sequence[Child]:
        return [project(kind, body) for key, body in self._sorted() if key.kind == kind]

    def child(self, key: Key) -> Child | None:
        return project(key.kind, self.objects[key]) if key in self.objects else None

    def children(self, kind: str, namespace: str, owner_uid: str) -> Sequence[Child]:
        return [c for c in self.every(kind) if c.meta.namespace == namespace and c.meta.owner_uid == owner_uid]

    def labelled(self, kind: str, namespace: str, label: str, value: str) -> Sequence[Child]:
        return [c for c in self.every(kind) if c.meta.namespace == namespace and c.meta.labels.get(label) == value]

    def report(self, pod_uid: str) -> Report | None:
        return self.reports.get(pod_uid)

    def _sorted(self) -> Iterator[tuple[Key, Object]]:
        yield from sorted(self.objects.items(), key=lambda item: (item[0].namespace, item[0].name))

    # What users, the API server and the loop do.

    def add(self, body: Object) -> Key:
        """Create or replace an object, with the metadata that the API server would give it."""
        body = copy.deepcopy(body)
        metadata = body.setdefault("metadata", {})
        if body["kind"] != "Node":
            metadata.setdefault("namespace", NAMESPACE)
        self._serial += 1
        metadata.setdefault("uid", f"{self._serial:08x}-0000-4000-8000-000000000000")
        metadata.setdefault("creationTimestamp", rfc3339(self.now))
        metadata.setdefault("generation", 1)
        metadata["resourceVersion"] = str(self._serial)
        key = Key(body["kind"], metadata.get("namespace", ""), metadata["name"])
        self.objects[key] = body
        return key

    def edit(self, key: Key, **spec: Any) -> None:
        """A user changes fields of the spec; the generation goes up."""
        body = self.objects[key]
        body["spec"].update(spec)
        body["metadata"]["generation"] += 1
        self._touch(key)

    def delete(self, key: Key) -> None:
        """As `kubectl delete`: marks an object with finalizers, removes another and what it owns."""
        body = self.objects.get(key)
        if body is None:
            return
        if body["metadata"].get("finalizers"):
            body["metadata"].setdefault("deletionTimestamp", rfc3339(self.now))
            self._touch(key)
            return
        uid = self.objects.pop(key)["metadata"]["uid"]
        for other, theirs in list(self.objects.items()):
            if any(owner["uid"] == uid for owner in theirs["metadata"].get("ownerReferences", ())):
                self.delete(other)

    def carry_out(self, key: Key, plan: Plan) -> bool:
        """Do what the plan says; whether it changed anything."""
        changed = False
        for action in plan.actions:
            if isinstance(action, Apply):
                changed |= self._apply(action)
            elif (body := self.objects.get(action.key)) is not None and body["metadata"]["uid"] == action.uid:
                changed |= "deletionTimestamp" not in body["metadata"]
                self.delete(action.key)
        primary = self.objects.get(key)
        if primary is None:
            return changed
        if plan.status is not None and plan.status != primary.get("status"):
            primary["status"] = json.loads(json.dumps(plan.status))  # as the API server would store it
            self.events.extend(plan.events)
            self._touch(key)
            changed = True
        if plan.finalizers is not None and list(plan.finalizers) != primary["metadata"].get("finalizers", []):
            primary["metadata"]["finalizers"] = list(plan.finalizers)
            self._touch(key)
            changed = True
            if not plan.finalizers and "deletionTimestamp" in primary["metadata"]:
                self.delete(key)
        return changed

    def _apply(self, action: Apply) -> bool:
        body = json.loads(json.dumps(action.body))
        key = Key(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"])
        old = self.objects.get(key)
        if old is None:
            self.add(body)
            return True
        if action.only_if_absent:
            return False
        kept = {k: v for k, v in old.items() if k in ("status",)}
        metadata = {**old["metadata"], **body["metadata"]}
        new = {**body, **kept, "metadata": metadata}
        if new == old:
            return False
        if old.get("spec") != new.get("spec"):
            metadata["generation"] = old["metadata"]["generation"] + 1
        self.objects[key] = new
        self._touch(key)
        return True

    def _touch(self, key: Key) -> None:
        self._serial += 1
        self.objects[key]["metadata"]["resourceVersion"] = str(self._serial)

    def plan(self, reconcile: Reconcile, key: Key) -> Plan:
        """One plan, not carried out."""
        return reconcile(self, key, self.settings, self.now)

    def settle(self, reconcile: Reconcile, key: Key, limit: int = 8) -> Plan:
        """Plan and carry out until a plan changes nothing; returns that plan. Fails if `limit` passes do not do."""
        for _ in range(limit):
            plan = self.plan(reconcile, key)
            if not self.carry_out(key, plan):
                return plan
        raise AssertionError(f"{key} still changes after {limit} passes")

    # The Job and Deployment controllers and the kubelet, as far as tests need them.

    def start_workers(self, name: str, namespace: str = NAMESPACE, phase: str = "Running") -> list[str]:
        """Pods for every index of a Job that has none alive; returns the uids of all alive, by index."""
        job = self.objects[Key("Job", namespace, name)]
        template = job["spec"]["template"]
        alive = []
        for index in range(job["spec"]["completions"]):
            found = [
                pod
                for pod in self._pods(job)
                if pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == str(index)
                and pod["status"]["phase"] in ("Pending", "Running")
            ]
            if not found:
                self._serial += 1
                key = self.add(
                    {
                        "kind": "Pod",
                        "metadata": {
                            "name": f"{name}-{index}-{self._serial:05x}",
                            "namespace": namespace,
                            "labels": {
                                **template["metadata"]["labels"],
                                "batch.kubernetes.io/job-completion-index": str(index),
                            },
                            "ownerReferences": [
                                {"kind": "Job", "name": name, "uid": job["metadata"]["uid"], "controller": True}
                            ],
                        },
                        "spec": {"hostname": f"{name}-{index}", "nodeName": f"node{index % 2 + 1}"},
                        "status": {"phase": phase, "podIP": f"10.244.{index % 2}.{self._serial % 250}"},
                    }
                )
                found = [self.objects[key]]
            alive.append(found[0]["metadata"]["uid"])
        running = len(alive) if phase == "Running" else 0
        job.setdefault("status", {}).update(
            {"active": len(alive), "ready": running, "startTime": rfc3339(self.now), "conditions": []}
        )
        return alive

    def end_pod(self, uid: str, exit_code: int, progress: Progress | None = None, message: str = "") -> None:
        """A worker's container ends; the Job controller counts it by our own pod failure policy."""
        pod = next(body for body in self.objects.values() if body["metadata"]["uid"] == uid)
        text = message if progress is None else progress.model_dump_json(exclude_none=True)
        pod["status"].update(
            phase="Succeeded" if exit_code == 0 else "Failed",
            containerStatuses=[
                {
                    "name": "worker",
                    "state": {"terminated": {"exitCode": exit_code, "message": text, "finishedAt": rfc3339(self.now)}},
                }
            ],
        )
        owner = pod["metadata"]["ownerReferences"][0]
        job = self.objects[Key("Job", pod["metadata"]["namespace"], owner["name"])]
        status = job["status"]
        status["active"] = max(0, status.get("active", 0) - 1)
        status["ready"] = status["active"]
        if exit_code == 0:
            status["succeeded"] = status.get("succeeded", 0) + 1
        elif exit_code not in (names.ExitCode.STOPPED,):
            status["failed"] = status.get("failed", 0) + 1

    def roll_out(self, name: str, ready: int | None = None, namespace: str = NAMESPACE) -> list[Key]:
        """The Deployment controller replaces all pods by ones of the newest template; returns their keys.

        `ready`: how many of them answer; None: all.
        """
        body = self.objects[Key("Deployment", namespace, name)]
        template, replicas = body["spec"]["template"], body["spec"]["replicas"]
        for key in [k for k, b in self.objects.items() if k.kind == "Pod" and self._is_of(b, body)]:
            del self.objects[key]
        count = replicas if ready is None else ready
        found = []
        for index in range(replicas):
            state = {"running": {}} if index < count else {"waiting": {"reason": "ContainerCreating"}}
            up = index < count
            found.append(
                self.add(
                    {
                        "kind": "Pod",
                        "metadata": {
                            "name": f"{name}-{index}",
                            "namespace": namespace,
                            "labels": template["metadata"]["labels"],
                            "annotations": template["metadata"]["annotations"],
                        },
                        "status": {
                            "phase": "Running",
                            "conditions": [{"type": "Ready", "status": "True" if up else "False"}],
                            "containerStatuses": [{"name": "server", "ready": up, "state": state}],
                        },
                    }
                )
            )
        body["status"] = {
            "observedGeneration": body["metadata"]["generation"],
            "replicas": replicas,
            "updatedReplicas": replicas,
            "readyReplicas": count,
            "availableReplicas": count,
        }
        return found

    @staticmethod
    def _is_of(pod: Object, deployment: Object) -> bool:
        selector: Object = deployment["spec"]["selector"]["matchLabels"]
        return selector.items() <= pod["metadata"].get("labels", {}).items()

    def end_job(self, name: str, condition: str, reason: str = "", namespace: str = NAMESPACE) -> None:
        """The Job controller calls a Job Complete or Failed."""
        status = self.objects[Key("Job", namespace, name)].setdefault("status", {})
        status["active"] = status["ready"] = 0
        status["conditions"] = [{"type": condition, "status": "True", "reason": reason, "message": f"{reason}."}]
        if condition == "Complete":
            status["completionTime"] = rfc3339(self.now)

    def report_progress(self, uid: str, progress: Progress) -> None:
        """What the poller heard from a pod just now."""
        self.reports[uid] = Report(progress.model_dump(by_alias=True, mode="json"), self.now)

    def _pods(self, job: Object) -> list[Object]:
        uid = job["metadata"]["uid"]
        return [
            body
            for key, body in self._sorted()
            if key.kind == "Pod" and body["metadata"]["ownerReferences"][0]["uid"] == uid
        ]


def claim(name: str, mode: str = "ReadWriteMany", **metadata: Any) -> Object:
    """A bound PersistentVolumeClaim."""
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, **metadata},
        "spec": {"accessModes": [mode], "volumeName": f"pv-{name}"},
        "status": {"phase": "Bound", "accessModes": [mode]},
    }


def config_map(name: str, **data: str) -> Object:
    """A ConfigMap as a user makes one."""
    return {"kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def node(name: str, **allocatable: str) -> Object:
    """A node; keywords name resources with underscores for what Python does not allow: nvidia_com_gpu."""
    resources = {"cpu": "2", "memory": "8Gi", "pods": "110"}
    resources.update({key.replace("nvidia_com_gpu", "nvidia.com/gpu"): value for key, value in allocatable.items()})
    return {"kind": "Node", "metadata": {"name": name}, "status": {"allocatable": resources}}


def condition(status: Mapping[str, Any] | None, kind: str) -> Mapping[str, Any]:
    """One condition of a status; fails with what there is."""
    found = [c for c in (status or {}).get("conditions", ()) if c["type"] == kind]
    assert found, f"no condition {kind} among {[c['type'] for c in (status or {}).get('conditions', ())]}"
    result: Mapping[str, Any] = found[0]
    return result

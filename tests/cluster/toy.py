"""Toy planners, small enough to hold in the head: a TrainingJob becomes a ConfigMap, a Service and a status.

The tests of the loop use them, so that what they find is the loop's doing. `python -m tests.cluster.toy` is the
operator's process with toys instead of planners; everything else in it is real.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from kubeformer.app.main import main
from kubeformer.contract.names import API_VERSION, LABEL_MANAGED_BY, LABEL_TRAINING_JOB, MANAGED_BY
from kubeformer.control.conditions import timestamp
from kubeformer.control.worker import Controller
from kubeformer.kit.plan import Apply, Event, Plan
from kubeformer.kit.view import Key, View


def settings_of(primary: Mapping[str, Any]) -> dict[str, Any]:
    """The ConfigMap that the toy makes."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(primary, "settings"),
        "data": {"epochs": str((primary["spec"].get("training") or {}).get("epochs", 3))},
    }


def service_of(primary: Mapping[str, Any], ports: tuple[int, ...] = (29400,)) -> dict[str, Any]:
    """The headless Service that the toy makes."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(primary, "workers"),
        "spec": {
            "clusterIP": "None",
            "selector": {LABEL_TRAINING_JOB: primary["metadata"]["name"]},
            "ports": [{"name": f"port-{port}", "port": port} for port in ports],
        },
    }


def reconcile(view: View, key: Key, now: float) -> Plan:
    """Both children, and a condition that says whether they have been seen. Named "invalid", its Service is refused."""
    primary = view.primary(key)
    if primary is None:
        return Plan()
    ports = (70000,) if key.name == "invalid" else (29400,)
    children = (settings_of(primary), service_of(primary, ports))
    there = [view.child(Key(c["kind"], key.namespace, c["metadata"]["name"])) is not None for c in children]
    before = {c["type"]: c for c in (primary.get("status") or {}).get("conditions") or ()}.get("Valid", {})
    verdict = "True" if all(there) else "Unknown"
    condition = {
        "type": "Valid",
        "status": verdict,
        "reason": "Accepted" if all(there) else "Pending",
        "message": "",
        "observedGeneration": primary["metadata"]["generation"],
        "lastTransitionTime": before["lastTransitionTime"] if before.get("status") == verdict else timestamp(now),
    }
    turned = before.get("status") != "True" and verdict == "True"
    return Plan(
        actions=tuple(Apply(child) for child in children),
        status={"observedGeneration": primary["metadata"]["generation"], "conditions": [condition]},
        events=(Event("Normal", "Accepted", "all children are there"),) if turned else (),
    )


def nothing(view: View, key: Key, now: float) -> Plan:
    """Plans nothing."""
    return Plan()


def controllers() -> dict[str, Controller]:
    """The toys in the planners' places."""
    return {
        "TrainingJob": Controller("TrainingJob", "trainingjob-controller", reconcile),
        "ModelDeployment": Controller("ModelDeployment", "modeldeployment-controller", nothing),
    }


def _metadata(primary: Mapping[str, Any], role: str) -> dict[str, Any]:
    m = primary["metadata"]
    owner = {"apiVersion": API_VERSION, "kind": "TrainingJob", "name": m["name"], "uid": m["uid"], "controller": True}
    return {
        "namespace": m["namespace"],
        "name": f"{m['name']}-{role}",
        "labels": {LABEL_MANAGED_BY: MANAGED_BY, LABEL_TRAINING_JOB: m["name"]},
        "ownerReferences": [owner],
    }


if __name__ == "__main__":
    sys.exit(main(lambda settings: controllers()))

"""Idle, the control plane writes nothing but the operator's Lease: read from the API server's own audit log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localcluster.components import Cluster
from tests.e2e.lab import SYSTEM, Lab, model_deployment, training_job

QUIET_SECONDS = 20.0


def test_an_idle_operator_writes_only_its_lease(lab: Lab, cluster: Cluster) -> None:
    """Idle, not empty: a job waits for a claim, a deployment for the job, and both are looked at again and again."""
    log = cluster.layout.audit_log
    assert log.exists(), f"there is no audit log at {log}: this test needs the cluster of `python -m localcluster up`"
    _wait_for_other_tests(lab)
    lab.apply(training_job("waits", data={"uri": "pvc://nowhere/rows.jsonl"}), model_deployment("waits"))
    lab.wait_for_condition("trainingjob", "waits", "Valid", "False", "ClaimNotFound")
    lab.wait_for_condition("modeldeployment", "waits", "ModelReady", "False", "WaitingForModel")
    time.sleep(5.0)  # what was on its way when the conditions appeared

    begin = log.stat().st_size
    time.sleep(QUIET_SECONDS)
    writes = list(_writes(log, begin))
    leases = [write for write in writes if _is_lease(write)]
    assert [_short(write) for write in writes if not _is_lease(write)] == []
    assert leases, "the operator does not even renew its Lease: is it running?"


def _wait_for_other_tests(lab: Lab) -> None:
    """Namespaces of tests before this one are still being deleted, and finalizers are released by writing."""

    def alone() -> bool:
        found = lab.kubectl.run("get", "namespaces", "-o", "name").split()
        return not any("/e2e-" in name and not name.endswith(lab.namespace) for name in found)

    lab.wait("the namespaces of other tests are gone", alone)


def _writes(log: Path, begin: int) -> Iterator[dict[str, Any]]:
    """What the control plane has written since the log had `begin` bytes; a log that was rotated is read whole."""
    with log.open("rb") as file:
        file.seek(begin if log.stat().st_size >= begin else 0)
        for line in file.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                continue  # still being written
            entry: dict[str, Any] = json.loads(line)
            if entry["user"].get("username", "").startswith(f"system:serviceaccount:{SYSTEM}:"):
                yield entry


def _is_lease(write: dict[str, Any]) -> bool:
    return bool(write.get("objectRef", {}).get("resource") == "leases")


def _short(write: dict[str, Any]) -> str:
    target = write.get("objectRef", {})
    return f"{write['verb']} {target.get('resource')} {target.get('namespace')}/{target.get('name')}"

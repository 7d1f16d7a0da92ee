"""Whatever dies, training goes on: workers do not notice the control plane, and are replaced from a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.lab import SYSTEM, Lab, condition, kill_pod, patiently, training_job

ROOT = Path(__file__).parent.parent.parent


def test_the_control_plane_may_die_while_workers_train(lab: Lab) -> None:
    """kill -9 of operator, API server and etcd. No worker restarts, and the job ends as if nothing had happened."""
    lab.apply(
        training_job(
            "calm",
            training={"steps": 5000, "batchSize": 16, "evaluation": {"everySteps": 1000}},
            checkpoint={"intervalSeconds": 5},
        )
    )
    lab.wait("training has begun", lambda: _checkpointed_step(lab, "calm") > 0)
    before = [pod["metadata"]["uid"] for pod in lab.workers("calm")]

    assert kill_pod(_operator(lab)) > 0
    _kill_component("kube-apiserver")
    _kill_component("etcd")

    job = lab.wait_for_condition("trainingjob", "calm", "Succeeded", "True", "Completed")
    pods = lab.workers("calm")
    assert [pod["metadata"]["uid"] for pod in pods] == before
    assert [pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods] == [0, 0]
    assert [_last_words(pod)["restarts"] for pod in pods] == [0, 0]
    status = job["status"]
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Completed"]
    assert status["workers"]["restarts"] == 0
    assert status["progress"]["summary"] == "5000/5000"
    assert len(status["artifacts"]) == 1
    restarted = _operator(lab)["status"]["containerStatuses"][0]["restartCount"]
    assert restarted > 0  # it was really killed


def test_a_killed_worker_and_a_suspended_job_go_on_from_the_last_checkpoint(lab: Lab) -> None:
    lab.apply(
        training_job(
            "rough",
            training={"steps": 1_000_000, "batchSize": 16, "evaluation": {"everySteps": 1000}},  # it is ended by hand
            checkpoint={"intervalSeconds": 2, "keep": 1},
        )
    )
    lab.wait("there is a checkpoint", lambda: _checkpointed_step(lab, "rough") > 0)
    reached = _checkpointed_step(lab, "rough")
    assert kill_pod(lab.workers("rough")[1]) > 0

    lab.wait("the fault is counted", lambda: _restarts(lab, "rough") > 0)
    lab.wait("training has gone on", lambda: _checkpointed_step(lab, "rough") > _from_step(lab, "rough"))
    attempts = lab.job("rough")["status"]["attempts"]
    assert attempts[-1]["fromStep"] >= reached
    assert attempts[0]["endTime"]

    lab.patch("trainingjob", "rough", suspend=True)
    lab.wait_for_condition("trainingjob", "rough", "Suspended", "True", "Suspended")
    assert [pod for pod in lab.workers("rough") if pod["status"]["phase"] in ("Pending", "Running")] == []
    saved, faults = _checkpointed_step(lab, "rough"), _restarts(lab, "rough")
    lab.patch("trainingjob", "rough", suspend=False)
    lab.wait("training has gone on", lambda: _checkpointed_step(lab, "rough") > saved)
    status = lab.job("rough")["status"]
    assert status["attempts"][-2]["reason"] == "Suspended"
    assert status["attempts"][-1]["fromStep"] >= saved
    assert status["workers"]["restarts"] == faults  # a suspension is no fault
    assert condition(lab.job("rough"), "Suspended")["status"] == "False"
    lab.delete("trainingjob", "rough")


def _checkpointed_step(lab: Lab, name: str) -> int:
    job = lab.job(name)
    summary = condition(job, "Succeeded")
    assert summary.get("status") != "False", f"{name} has failed: {summary.get('message')}\n{lab.evidence()}"
    return int(job.get("status", {}).get("checkpoint", {}).get("step", 0))


def _restarts(lab: Lab, name: str) -> int:
    return int(lab.job(name)["status"]["workers"]["restarts"])


def _from_step(lab: Lab, name: str) -> int:
    return int(lab.job(name)["status"]["attempts"][-1].get("fromStep", 1 << 60))


def _last_words(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"])
    return found


def _operator(lab: Lab) -> dict[str, Any]:
    selector = "app.kubernetes.io/component=operator"
    text = patiently(
        lambda: lab.kubectl.run("get", "pods", "-n", SYSTEM, "-l", selector, "-o", "json"), "get the operator's pod"
    )
    running = [pod for pod in json.loads(text)["items"] if "deletionTimestamp" not in pod["metadata"]]
    found: dict[str, Any] = running[0]
    return found


def _kill_component(name: str) -> None:
    """kill -9 of a part of the control plane; it is started again at once, and this waits until it is ready."""
    done = subprocess.run(
        [sys.executable, "-m", "localcluster", "kill", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"localcluster kill {name}: {done.stdout}{done.stderr}"

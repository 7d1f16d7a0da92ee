"""Lab: a namespace on the real cluster, and the words in which end-to-end tests speak of it.

Everything waits with a generous deadline and looks again, because the machine may be busy and tests take the API server
away; what was waited for in vain is told with the objects, events and logs that explain it.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.kubectl import CommandFailed, Kubectl, Object, python_pod

DEADLINE = 240.0
SYSTEM = "kubeformer-system"

# A model so small that training it costs nothing but the start; one thread, because the machine has two cores.
TINY = {"architecture": {"layers": 1, "width": 16, "heads": 2}}
WORKERS = {"replicas": 2, "resources": {"requests": {"cpu": "50m", "memory": "384Mi"}, "limits": {"cpu": "1"}}}
SERVERS = {"requests": {"cpu": "50m", "memory": "384Mi"}, "limits": {"cpu": "1"}}


@dataclass(frozen=True, slots=True)
class Lab:
    """One namespace; `image` has Python in it."""

    kubectl: Kubectl
    image: str

    @property
    def namespace(self) -> str:
        return self.kubectl.namespace

    def apply(self, *manifests: Object) -> None:
        """`kubectl apply`, again while the API server is away."""
        patiently(lambda: self.kubectl.apply(*manifests), "apply")

    def get(self, kind: str, name: str) -> Object:
        """An object; {} if it is not there."""
        text = patiently(
            lambda: self.kubectl.run("get", kind, name, "--ignore-not-found", "-o", "json"), f"get {kind} {name}"
        )
        found: Object = json.loads(text) if text.strip() else {}
        return found

    def list(self, kind: str, selector: str = "") -> list[Object]:
        """All objects of a kind that have the labels."""
        text = patiently(lambda: self.kubectl.run("get", kind, "-l", selector, "-o", "json"), f"list {kind}")
        found: list[Object] = json.loads(text)["items"]
        return found

    def patch(self, kind: str, name: str, **spec: Any) -> None:
        """A user changes fields of the spec."""
        body = json.dumps({"spec": spec})
        patiently(lambda: self.kubectl.run("patch", kind, name, "--type=merge", "-p", body), f"patch {kind} {name}")

    def delete(self, kind: str, name: str) -> None:
        """`kubectl delete`, without waiting."""
        patiently(
            lambda: self.kubectl.run("delete", kind, name, "--wait=false", "--ignore-not-found"), f"delete {name}"
        )

    def workers(self, job: str) -> list[Object]:
        """Worker pods of a TrainingJob, by index."""
        pods = self.list("pods", f"kubeformer.dev/training-job={job},app.kubernetes.io/component=worker")
        return sorted(pods, key=lambda pod: str(pod["metadata"]["labels"].get(INDEX, "")))

    def job(self, name: str) -> Object:
        return self.get("trainingjob", name)

    def wait(self, what: str, done: Callable[[], object], seconds: float = DEADLINE) -> None:
        """Look until `done` says something true."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise AssertionError(f"Waited {seconds:.0f} s in vain: {what}.\n{self.evidence()}")
            time.sleep(0.5)

    def wait_for_condition(self, kind: str, name: str, type: str, status: str, reason: str = "") -> Object:
        """The object, once the condition is so. Fails at once where a job has failed although it should not have."""
        found: Object = {}

        def reached() -> bool:
            nonlocal found
            found = self.get(kind, name)
            now = condition(found, type)
            summary = condition(found, "Succeeded")
            if summary.get("status") == "False" and (type, status) != ("Succeeded", "False"):
                raise AssertionError(f"{kind} {name} has failed: {summary.get('message')}\n{self.evidence()}")
            return now.get("status") == status and reason in ("", now.get("reason"))

        self.wait(f"{kind} {name} has {type}={status} {reason}".rstrip(), reached)
        return found

    def evidence(self) -> str:
        """What there is, for whoever has to find out why."""
        parts = []
        for command in (
            ("get", "trainingjobs,modeldeployments", "-o", "yaml"),
            ("get", "jobs,pods,deployments,services,configmaps,persistentvolumeclaims", "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", "-l", "app.kubernetes.io/managed-by=kubeformer", "--all-containers", "--prefix", "--tail=15"),
            ("logs", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--tail=40"),
        ):
            try:
                text = self.kubectl.run(*command)
            except (CommandFailed, subprocess.TimeoutExpired) as error:
                text = str(error)
            parts.append(f"$ kubectl {' '.join(command)}\n{text[-6000:]}")
        return "\n".join(parts)


INDEX = "batch.kubernetes.io/job-completion-index"


def patiently(call: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """The call's result; again while kubectl cannot reach the API server. What the API server refuses is raised."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except (CommandFailed, subprocess.TimeoutExpired) as error:
            if time.monotonic() > deadline or not _is_away(str(error)):
                raise AssertionError(f"{what}: {error}") from error
        time.sleep(1.0)


_AWAY = re.compile(
    "refused|timed? ?out|timeout|unable to connect|reset|EOF|etcd|unavailable|unable to handle|too many requests"
    "|deadline|leader|forbidden: User.*cannot|could not find the requested|doesn't have a resource type"
    "|not (yet )?ready|connection lost|rpc error|internal ?error|no matches for kind",
    re.IGNORECASE,
)
"""kubectl's words for an API server that is away or has just come back (its RBAC and discovery come a moment later)."""


def _is_away(words: str) -> bool:
    return _AWAY.search(words) is not None


def condition(body: Mapping[str, Any], type: str) -> Object:
    """A condition; {} if there is none of the type."""
    found = body.get("status", {}).get("conditions", [])
    return next((dict(entry) for entry in found if entry["type"] == type), {})


def rows(count: int = 400) -> str:
    """Mails that a child could tell apart, as JSON Lines; the same every time."""
    random_words = random.Random(0)
    ham = ["meeting", "agenda", "report", "schedule", "minutes", "project", "review", "notes"]
    spam = ["winner", "prize", "lottery", "free", "money", "casino", "offer", "click"]
    lines = []
    for number in range(count):
        words = " ".join(random_words.choice(spam if number % 2 else ham) for _ in range(8))
        lines.append(json.dumps({"text": f"{words} {number}", "label": "spam" if number % 2 else "ham"}))
    return "\n".join(lines) + "\n"


def rows_map(name: str = "rows") -> Object:
    """The rows as a ConfigMap, so that nothing has to be uploaded."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"rows.jsonl": rows()}}


def training_job(name: str, **spec: Any) -> Object:
    """A TrainingJob of the tiny model on two workers."""
    complete: Object = {
        "task": {"textClassification": {"maxLength": 16}},
        "model": TINY,
        "data": {"uri": "configmap://rows/rows.jsonl", "tokenizer": {"train": {"vocabularySize": 400}}},
        "training": {"epochs": 6, "batchSize": 16},
        "workers": WORKERS,
    }
    return _object("TrainingJob", name, complete | spec)


def model_deployment(name: str, **spec: Any) -> Object:
    """A ModelDeployment of what the TrainingJob of the same name publishes."""
    complete: Object = {
        "model": {"trainingJobRef": {"name": name}},
        "resources": SERVERS,
        "drainSeconds": 5,
    }
    return _object("ModelDeployment", name, complete | spec)


def _object(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": "kubeformer.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def lister(claim: str, image: str) -> Object:
    """A pod that prints the paths of all files on a claim."""
    code = (
        "import os\n"
        "for folder, _, files in os.walk('/claim'):\n"
        "    for name in files: print(os.path.relpath(os.path.join(folder, name), '/claim'))\n"
        "    if not files and folder != '/claim' and not os.listdir(folder): print(folder + ' is empty')\n"
    )
    return python_pod("lister", image, code, claims={"/claim": claim})


def kill_pod(pod: Object) -> int:
    """kill -9 to everything that runs in the pod's containers; how many processes that were.

    From inside, a container's first process cannot be killed; from the host its processes are found by their cgroup.
    """
    uid = str(pod["metadata"]["uid"])
    marks = (f"pod{uid}", f"pod{uid.replace('-', '_')}")
    found = []
    for folder in Path("/proc").iterdir():
        try:
            inside = folder.name.isdecimal() and any(mark in (folder / "cgroup").read_text() for mark in marks)
            if inside and "pause" not in (folder / "comm").read_text():
                found.append(int(folder.name))
        except OSError:
            continue  # ended meanwhile
    for process in found:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(found)

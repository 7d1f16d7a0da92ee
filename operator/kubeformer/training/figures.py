"""Figures: progress, metrics, epochs, checkpoint and artifacts of a status, from what the workers said.

Worker 0 speaks for the job; where it is silent, another does. Workers that have just started again know nothing
yet: until they reach a step, the figures from before stay. Everything is cut to the bounds of the schema,
because a worker may say anything.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kubeformer.api.common import significant
from kubeformer.contract.progress import Artifact, Progress
from kubeformer.kit.instants import LATEST, rfc3339, seconds_of
from kubeformer.training.observe import Observed, Worker

SILENT_PHASES = frozenset({"Starting", "Preparing"})  # before the first step, and after a restart
MOST_METRICS, MOST_EPOCHS, MOST_ARTIFACTS, MOST_FACTS = 32, 20, 5, 32

Object = dict[str, Any]


def speaker(workers: Sequence[Worker]) -> Worker | None:
    """The worker whose word counts: the newest of index 0, else the newest of all."""
    spoken = [worker for worker in workers if worker.progress is not None]
    first = [worker for worker in spoken if worker.index in (0, None)]
    return max(first or spoken, key=lambda worker: worker.heard or 0.0, default=None)


def progress(seen: Observed, said: Worker | None) -> Object | None:
    """`status.progress`; None if nothing was ever said."""
    stored = _stored(seen, "progress")
    if said is None or said.progress is None:
        return stored
    heard = said.progress
    time = heard.heartbeat_time if heard.heartbeat_time is not None else said.heard
    if heard.phase in SILENT_PHASES and stored is not None and stored.get("step"):
        return {**stored, "phase": heard.phase, "updateTime": _time(time) or stored.get("updateTime")} | _no_eta(stored)
    result: Object = {"phase": heard.phase, "step": _count(heard.step), "epoch": _count(heard.epoch)}
    if heard.total_epochs is not None:
        result["totalEpochs"] = _count(heard.total_epochs)
    if heard.total_steps:
        total, step = _count(heard.total_steps), _count(heard.step)
        result |= {"totalSteps": total, "percent": min(100, 100 * step // total), "summary": f"{step}/{total}"}
        left = _seconds_left(heard, time, stored)
        if heard.phase in ("Succeeded", "Failed", "Stopped"):
            pass
        elif stored is not None and stored.get("step") == heard.step and not heard.epochs:
            result |= {name: stored.get(name) for name in ("estimatedCompletionTime", "eta")}  # it still stands
        elif left is not None:
            result |= {"estimatedCompletionTime": _time((time or 0.0) + left), "eta": words(left)}
    elif heard.step:
        result["summary"] = str(_count(heard.step))
    if heard.tokens_per_second is not None:
        result["tokensPerSecond"] = significant(heard.tokens_per_second)
    result["updateTime"] = _time(time)
    return {name: value for name, value in result.items() if value is not None}


def _no_eta(stored: Object) -> Object:
    """A restart makes the old estimate void; an empty text says so in the column."""
    return {"eta": "?"} if "eta" in stored else {}


def _seconds_left(heard: Progress, time: float | None, stored: Object | None) -> float | None:
    """From the pace of the last epoch, else from the steps since the status was last written."""
    steps = max(0, (heard.total_steps or 0) - heard.step)
    pace: float | None = None
    before, then = (stored.get("step"), seconds_of(stored.get("updateTime"))) if stored else (None, None)
    if heard.epochs:
        pace = heard.epochs[-1].step_milliseconds / 1000
    elif isinstance(before, int) and then is not None and time is not None and heard.step > before and time > then:
        pace = (time - then) / (heard.step - before)
    if pace is None or not math.isfinite(pace) or pace < 0:
        return None
    return min(steps * pace, 1e9)


def words(seconds: float) -> str:
    """A time span as people say it: 45s, 12m, 3h20m, 2d4h."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m" if minutes >= 10 else f"{minutes}m{whole % 60}s" if minutes else f"{whole}s"


def metrics(seen: Observed, said: Worker | None) -> list[Object]:
    """`status.metrics`: the newest values, and the best where there is one."""
    if said is None or said.progress is None or not said.progress.metrics:
        return _stored_list(seen, "metrics")
    heard = said.progress
    return _figures(heard.metrics, heard.best_metrics, heard.best_step)[:MOST_METRICS]


def _figures(
    values: Mapping[str, float], best: Mapping[str, float] | None = None, best_step: int | None = None
) -> list[Object]:
    found = []
    for name, value in sorted(values.items()):
        if not 0 < len(name) <= 256:
            continue
        figure: Object = {"name": name, "value": significant(value)}
        if best and name in best:
            figure["best"] = significant(best[name])
            if best_step is not None:
                figure["bestStep"] = _count(best_step)
        found.append(figure)
    return found


def epochs(seen: Observed, said: Worker | None) -> list[Object]:
    """`status.epochs`: the last twenty, by number. A worker that started again adds to what was known."""
    known = {e["epoch"]: e for e in _stored_list(seen, "epochs") if isinstance(e.get("epoch"), int)}
    for epoch in said.progress.epochs if said is not None and said.progress is not None else ():
        record: Object = {
            "epoch": min(_count(epoch.epoch), 2**31 - 1),
            "loss": significant(epoch.loss),
            "seconds": significant(epoch.seconds),
            "stepMilliseconds": significant(epoch.step_milliseconds),
        }
        if epoch.accuracy is not None:
            record["accuracy"] = significant(epoch.accuracy)
        if epoch.validation_loss is not None:
            record["validationLoss"] = significant(epoch.validation_loss)
        if epoch.validation_accuracy is not None:
            record["validationAccuracy"] = significant(epoch.validation_accuracy)
        known[record["epoch"]] = record
    return [known[number] for number in sorted(known)][-MOST_EPOCHS:]


def checkpoint(seen: Observed) -> Object | None:
    """`status.checkpoint`: the newest that any worker knows to be on storage."""
    said = [w.progress.checkpoint for w in seen.workers if w.progress is not None and w.progress.checkpoint is not None]
    newest = max(said, key=lambda record: record.time, default=None)
    stored = _stored(seen, "checkpoint")
    if newest is None:
        return stored
    result: Object = {"step": _count(newest.step), "time": _time(newest.time) or rfc3339(0)}
    if stored is not None and str(stored.get("time", "")) > result["time"]:
        return stored
    if newest.digest:
        result["digest"] = newest.digest[:128]
    place = _resolved(seen).get("checkpointUri")
    leaf = newest.path.rstrip("/").rpartition("/")[2]
    if isinstance(place, str) and leaf:
        result["uri"] = f"{place}/{leaf}"[:1100]
    return result


def artifacts(seen: Observed) -> list[Object]:
    """`status.artifacts`: what was published, the newest last; a model is known by its digest."""
    known = {a["digest"]: a for a in _stored_list(seen, "artifacts") if isinstance(a.get("digest"), str)}
    for worker in seen.workers:
        said = worker.progress.artifact if worker.progress is not None else None
        if said is not None and 0 < len(said.digest) <= 128:
            known[said.digest] = artifact(said)
    return list(known.values())[-MOST_ARTIFACTS:]


def artifact(said: Artifact) -> Object:
    """One artifact as status has it."""
    result: Object = {"uri": said.uri[:1100], "digest": said.digest, "step": _count(said.step)}
    if said.metrics:
        result["metrics"] = _figures(said.metrics)[:16]
    return result


def facts(seen: Observed, said: Worker | None) -> list[Object]:
    """`status.resolved.facts`: what the workers found out about data and model."""
    stored = _resolved(seen).get("facts")
    found = said.progress.resolved if said is not None and said.progress is not None else {}
    if not found:
        return [dict(f) for f in stored if isinstance(f, Mapping)] if isinstance(stored, list | tuple) else []
    named = [(name, found[name]) for name in sorted(found) if 0 < len(name) <= 256]
    return [
        {"name": name, "value": significant(value) if isinstance(value, float) else str(value)[:256]}
        for name, value in named
    ][:MOST_FACTS]


def heartbeat(seen: Observed) -> float | None:
    """When a running worker was last heard."""
    return max((w.heard for w in seen.workers if w.running and w.heard is not None), default=None)


def _resolved(seen: Observed) -> Object:
    return _stored(seen, "resolved") or {}


def _stored(seen: Observed, name: str) -> Object | None:
    value = seen.stored.get(name)
    return dict(value) if isinstance(value, Mapping) else None


def _stored_list(seen: Observed, name: str) -> list[Object]:
    value = seen.stored.get(name)
    return [dict(v) for v in value if isinstance(v, Mapping)] if isinstance(value, list | tuple) else []


def _count(value: int) -> int:
    return max(0, min(value, 2**31 - 1))


def _time(seconds: float | None) -> str | None:
    if seconds is None or not math.isfinite(seconds) or not 0 <= seconds <= LATEST:
        return None
    return rfc3339(seconds)

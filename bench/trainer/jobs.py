"""Jobs that a bench trains in this very process, from data to published model.

metrics = finished(directory, task=..., model=..., data=Data(source=located(file)), training=...)
"""

import json
import shutil
from pathlib import Path

from kubeformer.contract.base import Location
from kubeformer.contract.job import Checkpoint, Data, JobSettings, Model, Output, Task, Training
from kubeformer.contract.names import ExitCode


def located(path: Path) -> Location:
    """A file or directory of this machine."""
    return Location(uri=f"pvc://bench/{path.name}", path=str(path))


def finished(directory: Path, *, task: Task, model: Model, data: Data, training: Training) -> dict[str, float]:
    """Trains and publishes into DIRECTORY/model; metrics of what was published, with "epochs", "bestStep", "seconds".

    What is there from before is trained anew. Raises SystemExit where the job ends otherwise than well, and
    KeyboardInterrupt where it is stopped (SIGTERM).
    """
    from kubeformer_runtime.heartbeat import Heartbeat
    from kubeformer_runtime.trainer.report import Clock
    from kubeformer_runtime.trainer.run import run
    from kubeformer_runtime.trainer.stop import StopWish

    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    settings = JobSettings(
        name=directory.name,
        namespace="bench",
        uid=directory.name,
        task=task,
        model=model,
        data=data,
        training=training,
        checkpoint=Checkpoint(directory=str(directory / "checkpoints"), keep=1),
        output=Output(location=located(directory / "model")),
    )
    clock = Clock()
    began = clock.monotonic()
    code = run(settings, {}, Heartbeat(None), StopWish(), clock)
    if code == ExitCode.STOPPED:
        raise KeyboardInterrupt  # whoever stops a job means the bench
    if code != ExitCode.SUCCEEDED:
        raise SystemExit(f"{directory.name}: the trainer ended with {code!r}; its last lines above say why")
    last = json.loads((directory / "checkpoints" / "published.json").read_text())
    metrics: dict[str, float] = last["artifact"]["metrics"]
    steps = last["resolved"]["stepsPerEpoch"]
    return {
        **metrics,
        "epochs": round(last["totalSteps"] / steps, 2),
        "bestStep": last["bestStep"],
        "seconds": round(clock.monotonic() - began, 1),
    }

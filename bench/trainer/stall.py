"""How long a checkpoint keeps training waiting: a job over SmolLM2-135M with Adam, 1.6 GB of state, in float32.

The trainer itself runs, in this process. Its steps are cut into windows of 20; every other window begins with a
checkpoint, written in the background while the window's steps go on. What a checkpoint costs is the time of its window
less the mean of the two windows around it, in which nothing was written: so it holds the copying, and whatever
summing up and writing take from the steps. The same difference between calm windows says how exact that is.
"""

import json
import math
import random
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bench import harness
from bench.trainer.bars import Bar, Bench, table
from bench.trainer.jobs import located
from examples import smollm2

WINDOW = 21  # steps: one, a checkpoint begins, and 20 more
NEVER = 1 << 30
TOKENS = 64  # a step; the shorter a step, the more of it a checkpoint is
CHECKPOINTS = 6


class Enough(Exception):
    """All is measured."""


def run(bench: Bench) -> list[Bar]:
    """One job; stall and added time of each checkpoint."""
    directory = bench.work / "job"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    checkpoints = CHECKPOINTS * (4 if bench.long else 1)
    waits, steps, bytes_copied, durations = _train(directory, checkpoints)
    shutil.rmtree(directory, ignore_errors=True)
    # The first window of all is for warming up; of the others the second, fourth ... have a checkpoint.
    windows = [sum(steps[at : at + WINDOW]) for at in range(WINDOW, len(steps) - WINDOW + 1, WINDOW)]
    added = [windows[i] - (windows[i - 1] + windows[i + 1]) / 2 for i in range(1, len(windows) - 1, 2)]
    calm = [windows[i] - (windows[i - 2] + windows[i + 2]) / 2 for i in range(2, len(windows) - 2, 2)]
    lines = [
        (f"checkpoint {number}", 1000 * wait, 1000 * more, copied / 1e6, seconds)
        for number, (wait, more, copied, seconds) in enumerate(zip(waits, added, bytes_copied, durations, strict=True))
    ]
    print(table("SmolLM2-135M", ("", "waited ms", "20 steps longer by ms", "copied MB", "on storage after s"), lines))
    step = statistics.median(steps[WINDOW:])
    print(f"a step takes {1000 * step:.0f} ms; calm windows differ by {', '.join(f'{1000 * d:.0f}' for d in calm)} ms")
    worst, waited = _percentile(added, 0.99), _percentile(waits, 0.99)
    bench.figures.update(
        {
            "stepMs": round(1000 * step, 1),
            "waitMs": harness.spread([1000 * wait for wait in waits]),
            "addedMs": harness.spread([1000 * more for more in added]),
            "calmMs": harness.spread([1000 * difference for difference in calm]),
            "storageSeconds": harness.spread(durations),
        }
    )
    why = f"p99 of {len(added)}; {1000 * waited:.0f} ms of waiting, mean {1000 * statistics.fmean(added):.0f}"
    return [Bar("stall of a checkpoint of 135M with Adam, and 20 steps, ms", 200, 50, 1000 * worst, False, why)]


def _percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _train(directory: Path, checkpoints: int) -> tuple[list[float], list[float], list[int], list[float]]:
    """Seconds that each checkpoint kept the loop waiting, of each step, bytes copied, seconds until on storage."""
    from kubeformer.contract.job import Checkpoint, Data, JobSettings, LanguageModel, Model, Output, Training
    from kubeformer_runtime.heartbeat import Heartbeat
    from kubeformer_runtime.trainer import run as runner
    from kubeformer_runtime.trainer.loop import Loop
    from kubeformer_runtime.trainer.report import Clock
    from kubeformer_runtime.trainer.stop import StopWish

    windows = 2 * checkpoints + 2
    waits, steps, copied, durations = list[float](), list[float](), list[int](), list[float]()

    class TimedLoop(Loop):
        """The trainer's loop with a watch on it, and checkpoints at given steps instead of given times."""

        def _step(self) -> None:
            window, within = divmod(self.state.step, WINDOW)
            if window == windows:
                raise Enough
            cost, with_checkpoint = self.keeper.cost, window % 2 == 0 and window > 0
            self.keeper.interval_seconds = 0 if with_checkpoint and within == 0 else NEVER
            started = time.perf_counter()
            super()._step()
            steps.append(time.perf_counter() - started)
            if with_checkpoint and within == WINDOW - 1:
                waits.append(cost.stall)
                copied.append(cost.copied)
                durations.append(cost.duration)

    rows = directory / "rows.jsonl"
    draw = random.Random(0)
    words = [f"word{number}" for number in range(500)]
    rows.write_text("".join(json.dumps({"text": " ".join(draw.choices(words, k=200))}) + "\n" for _ in range(400)))
    settings = JobSettings(
        name="stall",
        namespace="bench",
        uid="stall",
        task=LanguageModel(sequence_length=TOKENS),
        model=Model(base=located(smollm2.ensure())),
        data=Data(source=located(rows)),
        training=Training(
            epochs=None,
            steps=windows * WINDOW + 1,
            batch_size=1,
            learning_rate=1e-5,
            precision="Float32",
            objective_metric="validation/loss",
            objective_direction="Minimize",
            evaluate_every_steps=NEVER,
        ),
        checkpoint=Checkpoint(directory=str(directory / "checkpoints"), interval_seconds=NEVER, keep=1),
        output=Output(location=located(directory / "model")),
    )
    original = runner.Loop
    runner.Loop = TimedLoop  # type: ignore[misc]
    try:
        runner.run(settings, {}, Heartbeat(None), StopWish(), Clock())
    except Enough:
        return waits, steps, copied, durations
    finally:
        runner.Loop = original  # type: ignore[misc]
    raise SystemExit("the job ended before its checkpoints were measured; its last lines above say why")

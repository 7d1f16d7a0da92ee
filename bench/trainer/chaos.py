"""SIGKILL at random moments: losses and final weights of a killed run against those of one that nobody touched.

Three stories, each over the same small job, a language model of two layers that saves once a second:

    one rank     killed again and again; every loss and the published weights have to be equal to the last bit
    two ranks    the same: one of them, drawn by lot, is killed, and the other has to notice
    2, 1, 2      started again with another number of ranks each time: sums over ranks are then added up in another
                 order, so losses agree to rounding, which is measured

Ranks are forked from this process, as processes of their own in the way of the launcher; a kill may come while they
start, train, write a checkpoint, evaluate or publish. The seed of the lots is printed.
"""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from bench.trainer.bars import Bar, Bench, table
from bench.trainer.jobs import located
from kubeformer.contract.job import Architecture, Checkpoint, Data, JobSettings, LanguageModel, Model, Output, Training

KILLS, MORE_KILLS = 20, 50
STEPS = 400
LONGEST_LIFE_SECONDS = 4.0  # a kill comes within this time after a start
SEED = 20
AGREEMENT = 1e-3  # how far losses may be apart, relatively, where the number of ranks changes on the way


@dataclass(frozen=True, slots=True)
class Told:
    """What a run left behind."""

    losses: dict[int, set[float]]  # by step: every value that any start found, which should be one
    weights: str  # SHA-256 of what was published
    kills: int
    seconds: float


def run(bench: Bench) -> list[Bar]:
    """The stories that ROWS names: one, two, changing."""
    kills = MORE_KILLS if bench.long else KILLS
    lots = random.Random(SEED)
    source = bench.work / "rows.jsonl"
    bench.work.mkdir(parents=True, exist_ok=True)
    _write_rows(source)
    bars, lines = list[Bar](), list[tuple[object, ...]]()
    for name, ranks, title in (
        ("one", [1], "one rank"),
        ("two", [2], "two ranks"),
        ("changing", [2, 1], "2, 1, 2 ranks"),
    ):
        if not bench.wants(name):
            continue
        dropout = 0.0 if name == "changing" else 0.1  # its random numbers belong to a rank
        whole = _story(bench.work / name / "whole", source, dropout, [ranks[0]], 0, lots)
        hurt = _story(bench.work / name / "hurt", source, dropout, ranks, kills, lots)
        apart = max(
            abs(other - value) / abs(value)
            for step, values in whole.losses.items()
            for value in values
            for other in hurt.losses[step]
        )
        same, weights = apart == 0 and whole.losses == hurt.losses, whole.weights == hurt.weights
        steps = len(hurt.losses)
        lines.append((title, hurt.kills, steps, apart, "equal" if weights else "other", whole.seconds, hurt.seconds))
        why = f"{steps} losses, apart by {apart:.2g} at most; weights {'equal' if weights else 'differ'}; seed {SEED}"
        if name == "changing":
            figure = hurt.kills if apart <= AGREEMENT and steps == STEPS else 0
        else:
            figure = hurt.kills if same and weights and steps == STEPS else 0
        bars.append(Bar(f"kills survived without a trace, {title}", KILLS, MORE_KILLS, float(figure), why=why))
        bench.figures[name] = {"kills": hurt.kills, "apart": apart, "weightsEqual": weights, "seconds": hurt.seconds}
    heads = ("", "kills", "losses", "apart by", "weights", "whole s", "killed s")
    print(table(f"killed at random moments, seed {SEED}", heads, lines))
    return bars


def _story(directory: Path, source: Path, dropout: float, ranks: list[int], kills: int, lots: random.Random) -> Told:
    """Starts ranks until the job is done, and kills one of them `kills` times on the way."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    settings = _settings(directory, source, dropout)
    log, began, starts, done = directory / "losses", time.monotonic(), 0, 0
    while True:
        size = ranks[starts % len(ranks)]
        children = _start(settings, size, log)
        starts += 1
        if done < kills:
            time.sleep(lots.uniform(0, LONGEST_LIFE_SECONDS))
            victim = lots.randrange(size)
            if children[victim].is_alive():
                os.kill(children[victim].pid or 0, signal.SIGKILL)
                done += 1
        for child in children:
            child.join()
        codes = [child.exitcode for child in children]
        if codes == [0] * size:
            break
        if done >= kills and starts > 3 * kills + 5:
            raise SystemExit(f"{directory}: the job does not come to its end; exit codes {codes}")
    losses: dict[int, set[float]] = {}
    for line in log.read_text().splitlines():
        step, value = line.split()
        losses.setdefault(int(step), set()).add(float.fromhex(value))
    weights = hashlib.sha256((directory / "model" / "model.safetensors").read_bytes()).hexdigest()
    return Told(losses, weights, done, time.monotonic() - began)


def _start(settings: JobSettings, size: int, log: Path) -> list[multiprocessing.process.BaseProcess]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_rank, args=(settings, rank, size, port, log)) for rank in range(size)]
    for child in children:
        child.start()
    return list(children)


def _rank(settings: JobSettings, rank: int, size: int, port: int, log: Path) -> None:
    """One rank; rank 0 notes the loss of every step. Ends as `python -m kubeformer_runtime.trainer` does."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    code = 1
    try:
        from kubeformer_runtime.heartbeat import Heartbeat
        from kubeformer_runtime.trainer import run as runner
        from kubeformer_runtime.trainer.report import Clock, Reporter
        from kubeformer_runtime.trainer.state import State
        from kubeformer_runtime.trainer.stop import StopWish

        notes = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

        class NotingReporter(Reporter):
            """Also writes down each loss, in one system call, so that a kill cannot tear a line."""

            def stepped(self, state: State, epoch: int, tokens: int, loss: float) -> None:
                if rank == 0:
                    os.write(notes, f"{state.step} {loss.hex()}\n".encode())
                super().stepped(state, epoch, tokens, loss)

            def log(self, line: str) -> None:
                """Only what went wrong: a start is told by others."""

        runner.Reporter = NotingReporter  # type: ignore[misc]
        code = int(runner.run(settings, os.environ, Heartbeat(None), StopWish(), Clock()))
    except BaseException as error:
        if size == 1:
            traceback.print_exception(error)
    sys.stdout.flush()
    os._exit(code)


def _settings(directory: Path, source: Path, dropout: float) -> JobSettings:
    architecture = Architecture(layers=2, width=64, heads=4, activation="SwiGLU", dropout=dropout)
    return JobSettings(
        name="chaos",
        namespace="bench",
        uid="chaos",
        task=LanguageModel(sequence_length=64),
        model=Model(architecture=architecture),
        data=Data(source=located(source), vocabulary_size=512),
        training=Training(
            epochs=None,
            steps=STEPS,
            batch_size=32,
            learning_rate=1e-3,
            objective_metric="validation/loss",
            objective_direction="Minimize",
            evaluate_every_steps=100,
        ),
        checkpoint=Checkpoint(directory=str(directory / "checkpoints"), interval_seconds=1),
        output=Output(location=located(directory / "model")),
    )


def _write_rows(path: Path) -> None:
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghiklmnoprstuw", k=draw.randint(2, 7))) for _ in range(300)]
    path.write_text("".join(json.dumps({"text": " ".join(draw.choices(words, k=80))}) + "\n" for _ in range(2000)))

"""Our trainer's loop over rows that are given, in the order given: python -m bench.trainer.ours TASK.json FOUND.json

TASK as of bench/peers/trl_train.py. The real Loop, tasks, optimiser and checkpoints; only data preparation is left out.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from kubeformer.contract.job import Checkpoint, JobSettings, LanguageModel, Location, Output, Training
from kubeformer_runtime.data.order import BatchOrder, Share
from kubeformer_runtime.heartbeat import Heartbeat
from kubeformer_runtime.model.llama import Llama
from kubeformer_runtime.model.weights import load
from kubeformer_runtime.trainer.loop import Loop, Surroundings
from kubeformer_runtime.trainer.metrics import operations_per_token, probe
from kubeformer_runtime.trainer.precision import Precision
from kubeformer_runtime.trainer.report import Clock, Reporter
from kubeformer_runtime.trainer.state import Fingerprint, State
from kubeformer_runtime.trainer.tasks.base import BaseTask, Network, Tally
from kubeformer_runtime.trainer.tasks.language_model import next_token_measures, next_token_tally
from kubeformer_runtime.trainer.world import Place, World


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs, and the token that follows each (IGNORE where it does not count)."""

    inputs_RS: Any
    targets_RS: Any

    def __len__(self) -> int:
        return len(self.inputs_RS)


class InOrder(BatchOrder):
    """Batches one after the other, as the file has them."""

    def batch(self, step: int) -> Any:
        """See BatchOrder."""
        size = self._batch_size
        return np.arange(step * size, (step + 1) * size) % self._rows


class GivenTask(BaseTask):
    """Next tokens of given rows."""

    metrics = ("loss", "perplexity", "accuracy")

    def __init__(self, rows: Rows, training: Training) -> None:
        super().__init__(cast(Any, rows), training)
        self.rows, self.row_tokens = rows, rows.inputs_RS.shape[1]
        self.order = InOrder(len(rows), training.batch_size, 0)

    def weight(self, step: int) -> float:
        """Targets that count."""
        return float((self.rows.targets_RS[self.order.batch(step)] >= 0).sum())

    def tokens(self, step: int) -> int:
        """All that are read."""
        return int(self.rows.inputs_RS[self.order.batch(step)].size)

    def batch(self, split: Any, share: Share) -> Any:
        """See Task."""
        return self.rows.inputs_RS[share.rows_B], self.rows.targets_RS[share.rows_B]

    def tally(self, network: Network, batch: Any) -> Tally:
        """See Task."""
        return next_token_tally(network, *batch)

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """See Task."""
        return next_token_measures(loss, correct, weight)


class Watch(Reporter):
    """Notes when each step ended, and what was measured."""

    times: list[float]
    losses: list[float]
    found: dict[str, float]

    def stepped(
        self, state: Any, epoch: int, tokens: int, loss: float, norm: float = 0.0, measures: Any = None
    ) -> None:
        """See Reporter."""
        self.times.append(time.perf_counter())
        self.losses.append(loss)
        if len(self.times) == 3:
            measures(1, 0)  # the first steps are left out, as everywhere
        elif len(self.times) > 3:
            self.measures = measures


def main(given: str, found: str) -> None:
    """Trains and writes seconds and losses by step, MFU and the share of data."""
    task = json.loads(Path(given).read_text())
    torch.set_num_threads(task["threads"])
    inputs, labels = np.load(task["inputs"]), np.load(task["labels"])
    targets = np.full(labels.shape, -100, dtype=np.int64)
    targets[:, :-1] = labels[:, 1:]
    network = load(task["model"]).module()
    assert isinstance(network, Llama)
    precision: Precision = "BFloat16" if task["bf16"] else "Float32"
    training = Training(
        epochs=None,
        steps=task["steps"],
        batch_size=task["batch"],
        learning_rate=task["learning_rate"],
        schedule="Constant",
        warmup_percent=0,
        objective_metric="train/loss",
        objective_direction="Minimize",
        evaluate_every_epochs=10**6,
    )
    output = Path(task["output"])
    location = Location(uri="pvc://bench/model", path=str(output / "model"))
    settings = JobSettings(
        name="bench",
        namespace="bench",
        uid="0",
        task=LanguageModel(sequence_length=inputs.shape[1]),
        training=training,
        checkpoint=Checkpoint(directory=str(output / "checkpoints"), interval_seconds=3600),
        output=Output(location=location),
    )
    clock = Clock()
    watch = Watch(Heartbeat(None), clock, rank=0, attempt=1)
    watch.times, watch.losses = [], []
    rows = Rows(inputs.astype(np.int32), targets)
    parameters, config = sum(parameter.numel() for parameter in network.parameters()), network.config
    table = 0 if config.tied_embeddings else config.vocabulary_size * config.width
    per_token = operations_per_token(
        parameters - table, config.layers, config.heads * config.head_width, inputs.shape[1]
    )
    state = State(fingerprint=Fingerprint(data="", model="", batch_size=0, seed=0, total_steps=0), world_size=1)
    peak = probe(precision, task["threads"])
    around = Surroundings(
        world=World.join(Place()),
        reporter=watch,
        stop_wished=lambda: False,
        clock=clock,
        precision=precision,
        rows_per_pass=task["rows_per_pass"],
    )
    loop = Loop(settings, GivenTask(rows, training), network, cast(Any, rows), state, around)
    begin = time.perf_counter()
    while loop.state.step < task["steps"]:
        loop._step()
    peak = max(peak, probe(precision, task["threads"]))
    seconds = [after - before for before, after in zip([begin, *watch.times], watch.times, strict=False)]
    measured = loop.watch.measures(task["steps"] - 3, 0.0, None)
    result = {
        "seconds": seconds,
        "losses": watch.losses,
        "peak": peak,
        "operationsPerToken": per_token,
        "dataWaitPercent": measured["train/dataWaitPercent"],
        "phases": measured,
    }
    Path(found).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:3])

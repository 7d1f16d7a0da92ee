"""The loop: steps, evaluations, checkpoints, until the last step, a stop, or early stopping.

It can be left at any step boundary and entered again there; see `trainer`'s docstring for why that is exact.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

import torch

from kubeformer.contract.job import JobSettings
from kubeformer.contract.names import Reason
from kubeformer.contract.progress import Epoch
from kubeformer_runtime.trainer.checkpoint import Snapshot
from kubeformer_runtime.trainer.errors import InvalidJob, Stopped
from kubeformer_runtime.trainer.fused import attach
from kubeformer_runtime.trainer.keeping import Keeper
from kubeformer_runtime.trainer.metrics import Stopwatch
from kubeformer_runtime.trainer.optimizers import make_optimizer, seed_step
from kubeformer_runtime.trainer.precision import LossScale, Precision, autocast
from kubeformer_runtime.trainer.report import LAST_EPOCHS, Clock, Reporter
from kubeformer_runtime.trainer.schedule import count_steps, evaluation_due, learning_rate
from kubeformer_runtime.trainer.state import State
from kubeformer_runtime.trainer.strategies import make_strategy
from kubeformer_runtime.trainer.tasks import Network, Ranks, Split, Task, Totals, evaluation_shares, passes
from kubeformer_runtime.trainer.tensorfile import TensorFile
from kubeformer_runtime.trainer.world import World

EVALUATION_ROWS = 64  # a pass; a stop is noticed after each


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a loop runs in: the other ranks, who listens, whether a stop is wished for, what time it is."""

    world: World
    reporter: Reporter
    stop_wished: Callable[[], bool]
    clock: Clock
    precision: Precision
    rows_per_pass: int
    recompute: bool = False  # activations in the backward pass instead of keeping them
    peak: float | None = None  # operations a second of matrix products in this precision, where known
    operations_per_token: float = 0.0


class Loop:
    """One run over one task. `state` and the network change; everything else is fixed."""

    def __init__(
        self, settings: JobSettings, task: Task, network: Network, validation: Split, state: State, around: Surroundings
    ) -> None:
        self.training = settings.training
        self.task, self.network, self.validation, self.state = task, network, validation, state
        self.world, self.reporter, self.clock = around.world, around.reporter, around.clock
        self.stop_wished, self.around, self.rows_per_pass = around.stop_wished, around, around.rows_per_pass
        self.strategy = make_strategy(settings.workers.strategy, network, self.world)
        self.flat = self.strategy.flat
        attach(network, self.flat, around.precision, around.recompute)
        self.optimizer = make_optimizer(self.training, self.flat)
        self.keeper = Keeper(
            settings.checkpoint,
            self.world,
            self.reporter,
            self.clock,
            workers=settings.workers.replicas,
            parts=self.strategy.parts,
        )
        self.steps_per_epoch = task.order.steps_per_epoch
        self.total_steps = count_steps(self.training, self.steps_per_epoch)
        self.total_epochs = self.training.epochs or math.ceil(self.total_steps / self.steps_per_epoch)
        self.watch = Stopwatch(around.clock.monotonic)

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to, from 1; after the last step, the last."""
        return min(self.state.step // self.steps_per_epoch + 1, self.total_epochs)

    def resume(self, snapshot: Snapshot) -> None:
        """Goes on from a checkpoint."""
        self.strategy.restore(snapshot, self.optimizer.state)
        self.state = snapshot.state
        self.reporter.settled(self.state, self.epoch)

    def run(self) -> None:
        """Trains to the end, which is saved.

        Raises:
            Stopped: a stop was wished for; the state is saved.
            InvalidJob: the loss is no number any more (reason TrainingDiverged).
        """
        self.reporter.phase("Training")
        vectors = (self.flat.value_N, *self.optimizer.state.values())
        self.keeper.start(sum(vector.nbytes for vector in vectors))
        while not self.state.finished:
            if self.state.settled_step < self.state.step:
                self._settle()
            elif self.state.step >= self.total_steps:
                self.state.finished = True
            else:
                self._step()
        self._save()

    def _step(self) -> None:
        started, step, watch = self.clock.monotonic(), self.state.step, self.watch
        watch.start()
        seed_step(self.training.seed, step, self.world.rank)
        weight, rate = self.task.weight(step), learning_rate(self.training, step, self.total_steps)
        watch.lap("data")
        self.network.train()
        self.flat.clear()
        watch.lap("optimizer")
        loss, correct, scale = 0.0, 0.0, self._scale()
        share = self.task.order.share(step, self.strategy.share_rank, self.strategy.share_size)
        pieces = list(passes(share, self.rows_per_pass))
        for piece in pieces:
            batch = self.task.batch(self.task.train, piece)
            watch.lap("data")
            with autocast(self.world.device, self.around.precision):
                tally = self.task.tally(self.network, batch)
            (tally.loss / weight * scale).backward()  # type: ignore[no-untyped-call]
            loss, correct = loss + float(tally.loss.detach()), correct + float(tally.correct)
            watch.lap("compute")
            if len(pieces) > 1:
                self.world.sum([0.0])  # keeps ranks together where a step is long
                self.reporter.beat()
        self.strategy.collect()
        if scale != 1:
            self.flat.gradient_N.mul_(1 / scale)
        norm = self.strategy.clip(self.training.max_gradient_norm)
        flags = (self.stop_wished(), *self.keeper.flags(self.state))
        loss, correct, stop, save, hopeless = self.world.sum([loss, correct, *flags])
        watch.lap("reduce")
        finite = math.isfinite(norm)
        if not math.isfinite(loss) or not (finite or self._leaves_out()):
            raise self._diverged(step, loss / weight, rate)
        if hopeless:
            self.keeper.give_up(hopeless)
        self.keeper.before_change()
        if finite:
            with torch.no_grad():
                self.optimizer.step(step, rate)
            self.strategy.changed()
        watch.lap("optimizer")
        state = self.state
        if self.around.precision == "Float16":
            after = LossScale(state.loss_scale, state.loss_scale_steps).after(finite)
            state.loss_scale, state.loss_scale_steps = after.scale, after.steps
        state.step += 1
        state.epoch_loss, state.epoch_correct = state.epoch_loss + loss, state.epoch_correct + correct
        state.epoch_weight, state.epoch_steps = state.epoch_weight + weight, state.epoch_steps + 1
        seconds = self.clock.monotonic() - started
        state.epoch_seconds, state.seconds = state.epoch_seconds + seconds, state.seconds + seconds
        self.reporter.stepped(state, self.epoch, self.task.tokens(step), loss / weight, norm, self._measures)
        self.keeper.stepped(seconds)
        if stop:
            self._save(stopped=True)
            raise Stopped(f"stopped after step {state.step}, which is saved")
        watch.start()
        if save:
            self.keeper.begin(state, self._files)
            watch.lap("checkpoint")

    def _settle(self) -> None:
        """What follows a step where it is due: evaluation, the end of an epoch."""
        state, evaluated = self.state, dict[str, float]()
        if evaluation_due(self.training, state.step, self.steps_per_epoch, self.total_steps):
            self.reporter.phase("Evaluating")
            self.watch.start()
            measures = self.evaluate(self.validation)
            self.watch.lap("evaluation")
            evaluated = {f"validation/{name}": value for name, value in measures.items()}
            trained = self.task.measures(state.epoch_loss, state.epoch_correct, state.epoch_weight)
            state.metrics = {f"train/{name}": value for name, value in trained.items()} | evaluated
            if state.judge(self.training, state.metrics):
                self.strategy.keep_best()
            state.finished = state.out_of_patience(self.training)
        if state.step % self.steps_per_epoch == 0:
            self._close_epoch(evaluated)
        state.settled_step = state.step
        self.reporter.settled(state, self.epoch)
        self.reporter.phase("Training")

    def _close_epoch(self, evaluated: dict[str, float]) -> None:
        state = self.state
        trained = self.task.measures(state.epoch_loss, state.epoch_correct, state.epoch_weight)
        epoch = Epoch(
            epoch=state.step // self.steps_per_epoch,
            loss=trained["loss"],
            accuracy=trained.get("accuracy"),
            validation_loss=evaluated.get("validation/loss"),
            validation_accuracy=evaluated.get("validation/accuracy"),
            seconds=state.epoch_seconds,
            step_milliseconds=1000 * state.epoch_seconds / state.epoch_steps,
        )
        state.epochs = [*state.epochs, epoch][-LAST_EPOCHS:]
        state.metrics = state.metrics | {"train/loss": epoch.loss}
        state.epoch_loss = state.epoch_correct = state.epoch_weight = state.epoch_seconds = 0.0
        state.epoch_steps = 0
        self.reporter.log_epoch(epoch, self.total_epochs)

    def evaluate(self, split: Split) -> dict[str, float]:
        """Measures over a split, each row counted once, whatever the number of ranks.

        Raises Stopped, with the state saved, where a stop is wished for meanwhile.
        """
        self.network.eval()
        totals, rows = [0.0, 0.0, 0.0], min(self.rows_per_pass, EVALUATION_ROWS)
        for share in evaluation_shares(split, rows, self.world.rank, self.world.size):
            with torch.no_grad(), autocast(self.world.device, self.around.precision):
                tally = self.task.tally(self.network, self.task.batch(split, share))
            found = [float(tally.loss), float(tally.correct), tally.weight, *map(float, tally.more)]
            *found, stop = self.world.sum([*found, self.stop_wished()])
            totals = [total + more for total, more in zip_longest(totals, found, fillvalue=0.0)]
            self._end_of_pass(bool(stop))
        loss, correct, weight, *more = totals
        ranks = Ranks(
            self.world.rank,
            self.world.size,
            self.world.sum,
            lambda: self._end_of_pass(bool(self.world.sum([self.stop_wished()])[0])),
        )
        with torch.no_grad(), autocast(self.world.device, self.around.precision):
            extra = self.task.extra(self.network, split, Totals(loss, correct, weight, tuple(more)), ranks)
        return self.task.measures(loss, correct, weight) | extra

    def _end_of_pass(self, stop: bool) -> None:
        """After each pass of an evaluation: a sign of life, and an end where one is wished for."""
        self.reporter.beat()
        if stop:
            if not self.state.finished:  # else it is saved, and the network may hold the best weights by now
                self._save(stopped=True)
            raise Stopped(f"stopped while evaluating step {self.state.step}, which is saved")

    def _save(self, stopped: bool = False) -> None:
        """Writes a checkpoint; every rank returns when it is on storage."""
        self.reporter.phase("Checkpointing")
        self.state.stopped = stopped
        self.keeper.save(self.state, self._files)
        self.reporter.phase("Training")

    def _files(self) -> list[TensorFile]:
        return self.strategy.files(self.state, self.optimizer.state)

    def _scale(self) -> float:
        """What the loss is multiplied by; only float16 needs it."""
        return self.state.loss_scale if self.around.precision == "Float16" else 1.0

    def _leaves_out(self) -> bool:
        """Whether a gradient that is not finite only means a smaller scale, and a step without change."""
        return self.around.precision == "Float16" and not LossScale(self.state.loss_scale).hopeless

    def _measures(self, steps: int, tokens: int) -> dict[str, float]:
        """Metrics of the last steps: times by phase, share of the peak."""
        peak = None if self.around.peak is None else self.around.peak * self.world.size
        return self.watch.measures(steps, tokens * self.around.operations_per_token, peak)

    def _diverged(self, step: int, loss: float, rate: float) -> InvalidJob:
        return InvalidJob(
            f"the loss became {loss} at step {step + 1} of {self.total_steps}, where the learning rate was {rate:.2g}; "
            f"lower spec.training.learningRate (now {self.training.learning_rate:g}) or set maxGradientNorm",
            Reason.TRAINING_DIVERGED,
        )

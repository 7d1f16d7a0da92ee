"""Learning rate as a pure function of the step, and when evaluations are due. Nothing here has to be saved."""

import math
from typing import Literal

from kubeformer.contract.job import Training


def learning_rate(training: Training, step: int, total_steps: int) -> float:
    """The learning rate of step `step` (from 0).

    It rises linearly over the first `warmup_percent` of all steps, then falls to zero by the schedule's curve:
    Cosine half a wave (https://arxiv.org/abs/1608.03983), Linear a straight line, Constant not at all,
    WarmupStableDecay not before the last `decay_percent` of all steps, over which it falls in a straight line
    (https://arxiv.org/abs/2405.18392).
    """
    warmup_steps = warmup(total_steps, training.warmup_percent)
    return training.learning_rate * factor(
        training.schedule, step, total_steps, warmup_steps, warmup(total_steps, training.decay_percent)
    )


def warmup(total_steps: int, percent: int) -> int:
    """Steps of warm-up, rounded up, so that any percentage above zero warms up for at least one step."""
    return math.ceil(total_steps * percent / 100)


def factor(
    kind: Literal["Cosine", "Linear", "Constant", "WarmupStableDecay"],
    step: int,
    total_steps: int,
    warmup_steps: int,
    decay_steps: int = 0,
) -> float:
    """Share of the full learning rate at `step`: above 0 at every step that is taken, and at most 1."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if kind == "WarmupStableDecay":
        return min(1.0, (total_steps - step) / (min(decay_steps, total_steps - warmup_steps) + 1))
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if kind == "Cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if kind == "Linear" else 1.0


def count_steps(training: Training, steps_per_epoch: int) -> int:
    """Optimiser steps of the whole run."""
    if training.steps is not None:
        return training.steps
    return (training.epochs or 1) * steps_per_epoch


def evaluation_due(training: Training, step: int, steps_per_epoch: int, total_steps: int) -> bool:
    """Whether the state after `step` steps is evaluated; the last state always is."""
    if step == 0:
        return False
    every = training.evaluate_every_steps or training.evaluate_every_epochs * steps_per_epoch
    return step == total_steps or step % every == 0

"""Optimisers over flat vectors, and the random numbers of a step.

Written here rather than taken from torch.optim: over one vector they are a few lines each, their state is one or
two vectors, and torch.optim imports the compiler, which costs every start of a rank four seconds of CPU. Tests
hold them equal to torch's.
"""

import hashlib
import math
from typing import Protocol

import torch
from torch import Tensor

from kubeformer.contract.job import Training
from kubeformer_runtime.kernels.training import AdamWStruct, load_training_kernels
from kubeformer_runtime.trainer.flat import Flat

BETAS = (0.9, 0.98)  # a shorter memory of squares than 0.999: steadier over a few thousand steps
EPSILON = 1e-8
MOMENTUM = 0.9
PIECE_NUMBERS = 1 << 24
WORTH_A_KERNEL = 1 << 20  # numbers; below, PyTorch's operators are as quick


class Optimizer(Protocol):
    """Changes the parameters by their gradients."""

    state: dict[str, Tensor]  # what has to be saved, by name; vectors like the parameters

    def step(self, number: int, learning_rate: float) -> None:
        """Takes step `number` (from 0)."""
        ...


class AdamW:
    """Adam with decoupled weight decay. https://arxiv.org/abs/1711.05101"""

    def __init__(self, flat: Flat, weight_decay: float) -> None:
        self.flat, self.weight_decay = flat, weight_decay
        self.mean_N, self.square_N = torch.zeros_like(flat.value_N), torch.zeros_like(flat.value_N)
        self.state = {"mean": self.mean_N, "square": self.square_N}
        on_cpu = flat.value_N.device.type == "cpu" and flat.value_N.dtype == torch.float32
        self.kernels = load_training_kernels() if on_cpu and flat.value_N.numel() >= WORTH_A_KERNEL else None

    def step(self, number: int, learning_rate: float) -> None:
        """See Optimizer."""
        flat, (beta1, beta2) = self.flat, BETAS
        # Both moments began at zero; the corrections take that out.
        mean_correction, square_correction = 1 - beta1 ** (number + 1), 1 - beta2 ** (number + 1)
        if self.kernels is not None:  # the same in one pass over memory
            for part, decay in (
                (slice(0, flat.decaying), learning_rate * self.weight_decay),
                (slice(flat.decaying, None), 0.0),
            ):
                numbers = (1, 1 - decay, beta1, beta2, mean_correction, math.sqrt(square_correction))
                step = AdamWStruct(*numbers, EPSILON, learning_rate)
                vectors = (flat.value_N[part], flat.gradient_N[part], self.mean_N[part], self.square_N[part])
                self.kernels.adamw(*vectors, None, step)
            return
        flat.decaying_value_D.mul_(1 - learning_rate * self.weight_decay)
        # Piece by piece, so that `root` is never a fifth vector of the whole model's size.
        vectors = (flat.value_N, flat.gradient_N, self.mean_N, self.square_N)
        pieces = (torch.split(vector, PIECE_NUMBERS) for vector in vectors)
        for value, gradient, mean, square in zip(*pieces, strict=True):
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = square.sqrt().div_(math.sqrt(square_correction)).add_(EPSILON)
            value.addcdiv_(mean, root, value=-learning_rate / mean_correction)


class SGD:
    """Stochastic gradient descent with momentum (0: plain descent); weight decay is part of the gradient."""

    def __init__(self, flat: Flat, weight_decay: float, momentum: float = MOMENTUM) -> None:
        self.flat, self.weight_decay, self.momentum = flat, weight_decay, momentum
        self.velocity_N = torch.zeros_like(flat.value_N)
        self.state = {"velocity": self.velocity_N}

    def step(self, number: int, learning_rate: float) -> None:
        """See Optimizer."""
        flat = self.flat
        flat.gradient_N[: flat.decaying].add_(flat.decaying_value_D, alpha=self.weight_decay)
        self.velocity_N.mul_(self.momentum).add_(flat.gradient_N)
        flat.value_N.add_(self.velocity_N, alpha=-learning_rate)


def make_optimizer(training: Training, flat: Flat) -> Optimizer:
    """The optimiser that the settings name."""
    if training.optimizer == "Muon":
        from kubeformer_runtime.trainer.muon import Muon

        return Muon(flat, training.weight_decay)
    kind = SGD if training.optimizer == "SGD" else AdamW
    return kind(flat, training.weight_decay)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Makes the random numbers of one step on one rank (dropout) a function of these three alone."""
    whole = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(whole, "big") >> 1)

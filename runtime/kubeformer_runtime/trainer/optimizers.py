"""Optimisers, and what every step sets anew: the learning rate and the random numbers."""

import hashlib

import torch
from torch import nn

from kubeformer.contract.job import Training

ADAM_BETAS = (0.9, 0.98)  # shorter memory of squares than 0.999: steadier over a few thousand steps
SGD_MOMENTUM = 0.9


def make_optimizer(training: Training, network: nn.Module) -> torch.optim.Optimizer:
    """AdamW (https://arxiv.org/abs/1711.05101) or SGD with momentum; weights decay, biases and norms do not."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if training.optimizer == "SGD":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=SGD_MOMENTUM, fused=True)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=ADAM_BETAS, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """For all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = value


def seed_step(seed: int, step: int, rank: int) -> None:
    """Makes the random numbers of one step on one rank (dropout) a function of these three alone."""
    whole = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(whole, "big") >> 1)

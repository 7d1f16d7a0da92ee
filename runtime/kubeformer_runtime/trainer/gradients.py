"""All gradients of a model as one flat vector, summed over the ranks.

Each parameter's `.grad` is a view into the vector, so that a sum over ranks is one collective, a norm is one
operation, and where a number lies never changes: unlike with DistributedDataParallel, whose buckets are laid
out anew after the first step, a resumed run adds the same numbers in the same order as one never stopped.
"""

import torch
from torch import nn

from kubeformer_runtime.trainer.world import World

CHUNK_NUMBERS = 8 << 20  # 32 MiB of float32 a collective


class Gradients:
    """The gradients of a module's parameters."""

    def __init__(self, module: nn.Module) -> None:
        parameters = list(module.parameters())
        first = parameters[0]
        self.flat_N = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
        start = 0
        for parameter in parameters:
            parameter.grad = self.flat_N[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def clear(self) -> None:
        """Sets all to zero, before the backward passes of a step."""
        self.flat_N.zero_()

    def sum_over(self, world: World) -> None:
        """Adds up what every rank found. Losses are divided by the whole batch, so the sum is the gradient."""
        for chunk_N in torch.split(self.flat_N, CHUNK_NUMBERS):
            world.sum_tensor(chunk_N)

    def clip(self, largest_norm: float) -> float:
        """Scales down to at most `largest_norm` (0: never) and returns the Euclidean norm found before."""
        norm = float(torch.linalg.vector_norm(self.flat_N))
        if 0 < largest_norm < norm:
            self.flat_N.mul_(largest_norm / norm)
        return norm

"""All parameters of a model that are trained, and all their gradients, as two flat vectors.

Every parameter and its `.grad` are views into them, so that the sum over ranks is one collective, the norm and the
optimiser are a handful of operations, and where a number lies never changes: unlike with DistributedDataParallel,
whose buckets are laid out anew after the first step, a resumed run adds the same numbers in the same order as one
that was never stopped.
"""

import torch
from torch import Tensor, nn

from kubeformer_runtime.trainer.world import World

CHUNK_NUMBERS = 8 << 20  # 32 MiB of float32 a collective
ALIGNMENT = 16  # numbers: every view begins on a cache line


class Flat:
    """The trained parameters of a module as a vector of N numbers. The first D decay: matrices before biases and norms.

    `value_N` and `gradient_N` have gaps (for alignment) that are zero and stay so.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        ordered = [p for p in parameters if p.dim() >= 2] + [p for p in parameters if p.dim() < 2]
        sizes = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in ordered]
        first = parameters[0]
        self.value_N = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        self.gradient_N = torch.zeros_like(self.value_N)
        self.decaying = sum(size for p, size in zip(ordered, sizes, strict=True) if p.dim() >= 2)
        self.places: dict[str, tuple[slice, torch.Size]] = {}
        start = 0
        for parameter, size in zip(ordered, sizes, strict=True):
            piece = slice(start, start + parameter.numel())
            self.places[names[id(parameter)]] = (piece, parameter.shape)
            self.value_N[piece] = parameter.detach().flatten()
            parameter.data = self.value_N[piece].view_as(parameter)
            parameter.grad = self.gradient_N[piece].view_as(parameter)
            start += size

    def views(self, vector_N: Tensor) -> dict[str, Tensor]:
        """A vector like the parameters (a moment of the optimiser, say) as one tensor for each parameter, by name."""
        return {name: vector_N[piece].view(shape) for name, (piece, shape) in self.places.items()}

    @property
    def decaying_value_D(self) -> Tensor:
        """The part of the parameters that weight decay pulls towards zero."""
        return self.value_N[: self.decaying]

    def clear(self) -> None:
        """Sets all gradients to zero, before the backward passes of a step."""
        self.gradient_N.zero_()

    def sum_over(self, world: World) -> None:
        """Adds up what every rank found. Losses are divided by the whole batch, so the sum is the gradient."""
        for chunk_N in torch.split(self.gradient_N, CHUNK_NUMBERS):
            world.sum_tensor(chunk_N)

    def clip(self, largest_norm: float) -> float:
        """Scales gradients down to at most `largest_norm` (0: never); returns the Euclidean norm found before."""
        norm = float(torch.linalg.vector_norm(self.gradient_N))
        if 0 < largest_norm < norm:
            self.gradient_N.mul_(largest_norm / norm)
        return norm

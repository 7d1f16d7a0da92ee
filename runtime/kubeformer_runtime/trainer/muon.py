"""Muon: momentum whose matrices are made orthogonal, for the matrices inside a network; AdamW for all else.

Source: https://kellerjordan.github.io/posts/muon/; its factor, for sharing learning rate and weight decay with AdamW:
https://arxiv.org/abs/2502.16982. Embeddings, output heads, norms and biases are AdamW's.
"""

import math

import torch
from torch import Tensor

from kubeformer_runtime.trainer.flat import Flat
from kubeformer_runtime.trainer.optimizers import BETAS, EPSILON

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at zero among those that keep singular values near one
MATCH_ADAM = 0.2  # root mean square of AdamW's usual update
TABLES = ("embed", "embedding", "lm_head", "head", "position")  # words in names of matrices that are no maps


def orthogonalise(matrix_OI: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """The nearest matrix whose singular values are all about one (0.7 to 1.2), by Newton and Schulz; float32."""
    a, b, c = COEFFICIENTS
    x: Tensor = matrix_OI.float()
    if tall := x.shape[0] > x.shape[1]:
        x = x.t()
    x = x / (torch.linalg.vector_norm(x) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.t() if tall else x
    return orthogonal


class Muon:
    """See the module's docstring. `mean` is the momentum of every parameter, `square` AdamW's second moment."""

    def __init__(self, flat: Flat, weight_decay: float) -> None:
        self.flat, self.weight_decay = flat, weight_decay
        self.mean_N, self.square_N = torch.zeros_like(flat.value_N), torch.zeros_like(flat.value_N)
        self.state = {"mean": self.mean_N, "square": self.square_N}
        self.matrices = [name for name, (_, shape) in flat.places.items() if is_map(name, shape)]

    def step(self, number: int, learning_rate: float) -> None:
        """See Optimizer."""
        flat, maps = self.flat, set(self.matrices)
        for name, (piece, shape) in flat.places.items():
            value, gradient = flat.value_N[piece].view(shape), flat.gradient_N[piece].view(shape)
            mean = self.mean_N[piece].view(shape)
            if len(shape) >= 2:
                value.mul_(1 - learning_rate * self.weight_decay)
            if name in maps:
                mean.mul_(MOMENTUM).add_(gradient)
                update = orthogonalise(gradient.add(mean, alpha=MOMENTUM))  # Nesterov's look ahead
                value.add_(update, alpha=-learning_rate * MATCH_ADAM * math.sqrt(max(shape)))
                continue
            square, (beta1, beta2) = self.square_N[piece].view(shape), BETAS
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = square.sqrt().div_(math.sqrt(1 - beta2 ** (number + 1))).add_(EPSILON)
            value.addcdiv_(mean, root, value=-learning_rate / (1 - beta1 ** (number + 1)))


def is_map(name: str, shape: torch.Size) -> bool:
    """Whether a parameter is a matrix between hidden states."""
    return len(shape) == 2 and not any(part.startswith(TABLES) for part in name.split("."))

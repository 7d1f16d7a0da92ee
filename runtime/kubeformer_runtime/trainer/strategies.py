"""How a model lies on the ranks, and what follows for gradients, checkpoints and the best weights.

DDP: every rank has all of it, takes its share of each batch, and gradients are added up (flat.py). It is the only
one so far; FSDP and tensor parallel, where a rank has a part of every matrix, are refused by name. Checkpoints are
ready for them: ranks may write parts (saving.py), and what is read is whole tensors by name, whoever wrote them.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from kubeformer_runtime.trainer import checkpoint
from kubeformer_runtime.trainer.checkpoint import Snapshot
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.flat import Flat
from kubeformer_runtime.trainer.state import State
from kubeformer_runtime.trainer.tensorfile import TensorFile
from kubeformer_runtime.trainer.world import World


class Strategy(Protocol):
    """One way to lay a model out; the loop knows no other."""

    flat: Flat  # what the optimiser changes: all parameters, or this rank's part of them
    parts: bool  # whether ranks hold different parts, so that each writes its own files
    share_rank: int  # which share of a batch this rank takes,
    share_size: int  # of how many

    def collect(self) -> None:
        """After the backward passes: the gradient of the whole batch, in `flat`."""
        ...

    def clip(self, largest_norm: float) -> float:
        """Scales gradients down to a norm of at most `largest_norm` (0: never); returns the norm found before."""
        ...

    def changed(self) -> None:
        """After the optimiser: what the next forward pass reads is what `flat` says."""
        ...

    def keep_best(self) -> None:
        """Remembers the weights as they are now for the best ones."""
        ...

    def use_best(self) -> None:
        """Puts the best weights, where there are any, into the network of every rank."""
        ...

    def files(self, state: State, moments: dict[str, Tensor]) -> list[TensorFile]:
        """What this rank writes of a checkpoint; tensors are the live ones."""
        ...

    def restore(self, snapshot: Snapshot, moments: dict[str, Tensor]) -> None:
        """Goes on from a checkpoint, whichever strategy wrote it."""
        ...


def named_moments(flat: Flat, moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """The optimiser's state by MOMENT.WEIGHT: views of its vectors; what is no such vector keeps its own name."""
    named: dict[str, Tensor] = {}
    for moment, vector in moments.items():
        if vector.shape == flat.value_N.shape:
            named |= {f"{moment}.{name}": view for name, view in flat.views(vector).items()}
        else:
            named[moment] = vector
    return named


def make_strategy(asked: str, network: nn.Module, world: World) -> "Strategy":
    """The strategy that the settings ask for. Raises InvalidJob for one that there is not."""
    if asked not in ("Auto", "DDP"):
        raise InvalidJob(f"spec.workers.strategy is {asked}, which is not there yet; leave it out or set it to DDP")
    return Replicated(network, world)


class Replicated:
    """DDP; also one rank alone. Rank 0 writes for all."""

    parts = False

    def __init__(self, network: nn.Module, world: World) -> None:
        self.network, self.world, self.flat = network, world, Flat(network)
        self.share_rank, self.share_size = world.rank, world.size
        self.best: dict[str, Tensor] | None = None  # on rank 0

    def collect(self) -> None:
        """See Strategy."""
        self.flat.sum_over(self.world)

    def clip(self, largest_norm: float) -> float:
        """See Strategy."""
        return self.flat.clip(largest_norm)

    def changed(self) -> None:
        """The network's parameters are views of the flat vector."""

    def keep_best(self) -> None:
        """See Strategy."""
        if self.world.first:
            self.best = {name: tensor.clone() for name, tensor in checkpoint.weights_of(self.network).items()}

    def use_best(self) -> None:
        """See Strategy."""
        if self.world.first and self.best is not None:
            checkpoint.restore_weights(self.network, self.best)
        self.world.broadcast(self.flat.value_N)

    def files(self, state: State, moments: dict[str, Tensor]) -> list[TensorFile]:
        """See Strategy."""
        if not self.world.first:
            return []
        snapshot = Snapshot(state, self.flat.views(self.flat.value_N), named_moments(self.flat, moments), self.best)
        return checkpoint.whole_files(snapshot)

    def restore(self, snapshot: Snapshot, moments: dict[str, Tensor]) -> None:
        """See Strategy."""
        with torch.no_grad():
            for name, view in self.flat.views(self.flat.value_N).items():
                view.copy_(snapshot.model[name])
            for name, view in named_moments(self.flat, moments).items():
                view.copy_(snapshot.optimizer[name])
        self.best = snapshot.best if self.world.first else None

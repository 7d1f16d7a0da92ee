"""Our optimisers over flat vectors take the steps that torch's take over single tensors."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from kubeformer.contract.job import Training
from kubeformer_runtime.trainer.flat import Flat
from kubeformer_runtime.trainer.optimizers import BETAS, EPSILON, MOMENTUM, make_optimizer, seed_step


def network() -> nn.Sequential:
    """Matrices and vectors, of sizes that are no multiples of anything."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.LayerNorm(13), nn.ReLU(), nn.Linear(13, 3))


class Reference:
    """Torch's optimisers by the kernels under them: the classes above import the compiler, which takes seconds."""

    def __init__(self, kind: str, module: nn.Module, weight_decay: float) -> None:
        self.kind, self.weight_decay = kind, weight_decay
        # Matrices decay, vectors do not.
        parameters = list(module.parameters())
        self.groups = [[p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]]
        self.first = [[torch.zeros_like(p) for p in group] for group in self.groups]
        self.second = [[torch.zeros_like(p) for p in group] for group in self.groups]

    def step(self, number: int, rate: float) -> None:
        """Step `number` (from 0) of both groups."""
        with torch.no_grad():
            for group, first, second, decay in zip(
                self.groups, self.first, self.second, (self.weight_decay, 0.0), strict=True
            ):
                gradients = [p.grad for p in group]
                if self.kind == "AdamW":
                    steps = [torch.tensor(float(number + 1)) for _ in group]
                    torch._fused_adamw_(
                        group, gradients, first, second, [], steps, lr=rate, beta1=BETAS[0], beta2=BETAS[1],
                        weight_decay=decay, eps=EPSILON, amsgrad=False, maximize=False,
                    )  # fmt: skip
                else:
                    torch._fused_sgd_(
                        group, gradients, first, lr=rate, weight_decay=decay, momentum=MOMENTUM, dampening=0.0,
                        nesterov=False, maximize=False, is_first_step=number == 0,
                    )  # fmt: skip


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_fifty_steps_lead_where_torch_gets_in_fifty(kind: str) -> None:
    ours, theirs = network(), network()
    training = Training(
        optimizer=kind,  # type: ignore[arg-type]
        weight_decay=0.1,
        objective_metric="validation/loss",
        objective_direction="Minimize",
    )
    flat = Flat(ours)
    optimizer, reference = make_optimizer(training, flat), Reference(kind, theirs, 0.1)
    for step in range(50):
        x, rate = torch.randn(5, 7, generator=torch.Generator().manual_seed(step)), 1e-2 / (1 + step)
        flat.clear()
        ours(x).square().mean().backward()
        theirs.zero_grad()
        theirs(x).square().mean().backward()
        with torch.no_grad():
            optimizer.step(step, rate)
        reference.step(step, rate)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(next(ours.parameters()), next(network().parameters()), atol=1e-3)


def test_the_norm_is_that_of_all_gradients_and_clipping_keeps_their_direction() -> None:
    ours, theirs = network(), network()
    flat = Flat(ours)
    for module in (ours, theirs):
        module(torch.ones(4, 7)).square().sum().backward()
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    assert flat.clip(0.5) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_a_limit_of_zero_clips_nothing() -> None:
    module = network()
    flat = Flat(module)
    module(torch.ones(4, 7)).square().sum().backward()
    norm = flat.clip(0.0)
    assert flat.clip(0.0) == norm > 0


def test_laying_parameters_out_flat_changes_no_bit_of_what_a_network_computes() -> None:
    module = network()
    x, before = torch.randn(5, 7), deepcopy(module)
    flat = Flat(module)
    assert torch.equal(module(x), before(x))
    assert int((flat.value_N != 0).sum()) == sum(int((p != 0).sum()) for p in before.parameters())


def test_random_numbers_are_a_function_of_seed_step_and_rank() -> None:
    def draw(seed: int, step: int, rank: int) -> float:
        seed_step(seed, step, rank)
        return float(torch.rand(()))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)}) == 27

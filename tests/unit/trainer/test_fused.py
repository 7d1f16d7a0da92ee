"""The fused decoder computes what autograd computes; Muon, schedules and loss scales do what they say."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kubeformer.contract.job import Training
from kubeformer_runtime.kernels.training import load_training_kernels
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.llama import Llama
from kubeformer_runtime.trainer.flat import Flat
from kubeformer_runtime.trainer.fused import FusedDecoder, first_seen, fuse
from kubeformer_runtime.trainer.metrics import Stopwatch
from kubeformer_runtime.trainer.muon import Muon, orthogonalise
from kubeformer_runtime.trainer.optimizers import SGD
from kubeformer_runtime.trainer.precision import FIRST_SCALE, STEPS_TO_DOUBLE, LossScale, choose_precision
from kubeformer_runtime.trainer.schedule import factor

KERNELS = load_training_kernels()


def decoder(key_value_heads: int = 2, tied: bool = True) -> Llama:
    """Two small layers whose attention is not uniform."""
    torch.manual_seed(0)
    sizes = {"layers": 2, "width": 64, "heads": 2, "head_width": 32, "mlp_width": 96, "max_length": 64}
    network = Llama(
        LlamaConfig(vocabulary_size=96, key_value_heads=key_value_heads, tied_embeddings=tied, **sizes)  # type: ignore[arg-type]
    )
    for parameter in network.parameters():
        if parameter.dim() >= 2:
            parameter.data.mul_(4)
    return network


@pytest.mark.parametrize(("key_value_heads", "tied", "recompute"), [(2, True, False), (1, False, True)])
def test_loss_and_gradients_are_those_of_autograd(key_value_heads: int, tied: bool, recompute: bool) -> None:
    network = decoder(key_value_heads, tied)
    plain = deepcopy(network)
    flat = Flat(network)
    fused = fuse(network, flat, half=False, recompute=recompute)
    assert (fused is None) == (KERNELS is None)  # CPUs without AVX-512 stay with PyTorch
    token_BS = torch.randint(0, 96, (3, 37))
    target_BS = torch.randint(0, 96, (3, 37))
    target_BS[:, :9] = -100
    document_BS = (torch.arange(37) >= 20).long().expand(3, 37).contiguous()
    logit_NV = plain(token_BS, document_BS).flatten(0, 1)
    wanted = F.cross_entropy(logit_NV, target_BS.flatten(), ignore_index=-100, reduction="sum")
    (wanted / 84).backward()  # type: ignore[no-untyped-call]
    for _ in range(2 if isinstance(fused, FusedDecoder) else 0):  # gradients add up, buffers are used again
        flat.clear()
        loss, correct = fused.loss(token_BS, target_BS, first_seen(document_BS))  # type: ignore[union-attr]
        (loss / 84).backward()  # type: ignore[no-untyped-call]
        assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
        assert int(correct) == int((logit_NV.argmax(-1) == target_BS.flatten()).sum())
        for mine, other in zip(network.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_a_network_with_dropout_or_adapters_is_not_fused() -> None:
    network = decoder()
    network.model.dropout = 0.1
    assert fuse(network, Flat(network), half=False) is None


def test_gradient_descent_on_a_parabola_takes_the_step_of_the_textbook() -> None:
    """f(w) = (w - 1)², so f'(w) = 2 (w - 1). From w = 2 with learning rate 0.1: w = 2 - 0.1 · 2 = 1.8."""
    module = nn.Module()
    module.w = nn.Parameter(torch.tensor([2.0]))
    flat = Flat(module)
    optimizer = SGD(flat, weight_decay=0.0, momentum=0.0)
    ((module.w - 1) ** 2).sum().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        optimizer.step(0, 0.1)
    assert module.w.item() == pytest.approx(1.8)


def test_orthogonalising_brings_every_singular_value_near_one_and_keeps_the_directions() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(12, 20)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalise(matrix)
    singular = torch.linalg.svdvals(found)
    assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3
    shares = u.T @ found @ v.T  # diagonal where the directions are kept
    torch.testing.assert_close(shares, torch.diag(shares.diagonal()), atol=1e-4, rtol=0)


def test_muon_moves_matrices_along_the_orthogonalised_momentum() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 6))
    before = module[0].weight.detach().clone()  # type: ignore[union-attr,operator]
    flat = Flat(module)
    flat.gradient_N.normal_()
    gradient = module[0].weight.grad.clone()  # type: ignore[union-attr,operator]
    with torch.no_grad():
        Muon(flat, weight_decay=0.1).step(0, 0.01)
    update = orthogonalise(gradient * (1 + 0.95))
    wanted = before * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 8**0.5 * update
    torch.testing.assert_close(module[0].weight.detach(), wanted)  # type: ignore[union-attr,operator]


def test_warm_up_stable_decay_is_flat_between_its_two_slopes() -> None:
    rates = [factor("WarmupStableDecay", step, 100, 10, 20) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert set(rates[10:80]) == {1.0}
    assert all(0 < after < before for before, after in pairwise(rates[79:]))


def test_the_scale_halves_at_an_overflow_and_doubles_after_a_long_time_without() -> None:
    scale = LossScale().after(finite=False)
    assert scale.scale == FIRST_SCALE / 2
    for _ in range(STEPS_TO_DOUBLE):
        scale = scale.after(finite=True)
    assert scale == LossScale(FIRST_SCALE, 0)


def test_auto_takes_bfloat16_on_a_cpu_only_for_what_its_kernels_can_train() -> None:
    training = Training(objective_metric="validation/loss", objective_direction="Minimize")
    cpu = torch.device("cpu")
    assert choose_precision(training, cpu, fusable=True, parameters=10**7) == "BFloat16"
    assert choose_precision(training, cpu, fusable=True, parameters=10**5) == "Float32"
    assert choose_precision(training, cpu, fusable=False, parameters=10**7) == "Float32"


def test_time_is_handed_to_phases_and_mfu_is_their_share_of_the_peak() -> None:
    times = iter([0.0, 0.0, 1.0, 9.0, 10.0])
    watch = Stopwatch(lambda: next(times))
    watch.start()
    watch.lap("data")
    watch.lap("compute")
    watch.lap("optimizer")
    found = watch.measures(steps=2, operations=50.0, peak=10.0)
    assert found["train/computeMilliseconds"] == 4000
    assert found["train/dataWaitPercent"] == 10
    assert found["train/mfu"] == 0.5

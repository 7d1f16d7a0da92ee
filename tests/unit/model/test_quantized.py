"""Linear layers in few bits: what comes back, how far it is off, and that the input's gradient is exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.quantized import (
    BLOCK,
    GROUP,
    LARGEST_GAP,
    LEVELS,
    Int8Linear,
    NF4Linear,
    Quantization,
    QuantizedLinear,
    dequantize_absmax,
    dequantize_nf4,
    quantize,
    quantize_absmax,
    quantize_int8,
    quantize_nf4,
)

KINDS: tuple[Quantization, ...] = ("Int8", "NF4")
torch.set_num_threads(1)


def random_weight(rows: int, columns: int, seed: int, scale: float) -> torch.Tensor:
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def bytes_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


def test_the_sixteen_levels_are_quantiles_of_a_normal_distribution() -> None:
    """Appendix E of QLoRA: eight quantiles on each side between 0 and 0.9677, zero taken out once, scaled to ±1."""
    offset = 0.9677083
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9)[:-1])
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8)[:-1])
    expected = torch.cat((above, torch.zeros(1), below)).sort().values / above.max()
    torch.testing.assert_close(torch.tensor(LEVELS), expected, atol=1e-5, rtol=0)


@given(code=st.lists(st.integers(0, 15), min_size=BLOCK - 1, max_size=BLOCK - 1), largest=st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_weights_that_are_levels_come_back_as_they_were(code: list[int], largest: float) -> None:
    weight = largest * torch.tensor([[*(LEVELS[index] for index in code), 1.0]])
    packed, absmax = quantize_nf4(weight)
    torch.testing.assert_close(dequantize_nf4(packed, absmax, (1, BLOCK), torch.float32), weight, rtol=1e-6, atol=0)


@given(
    rows=st.integers(1, 9), columns=st.integers(1, 90), seed=st.integers(0, 99), scale=st.sampled_from([1e-4, 1.0, 1e4])
)
@settings(max_examples=25, deadline=None)
def test_no_weight_is_further_off_than_half_a_gap_between_levels(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    weight = random_weight(rows, columns, seed, scale)
    integers, scales = quantize_int8(weight)
    assert bool(((integers * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all())
    packed, absmax = quantize_nf4(weight)
    assert packed.shape == (len(absmax) * BLOCK // 2,)
    off = (dequantize_nf4(packed, absmax, (rows, columns), torch.float32) - weight).abs().flatten()
    assert bool((off <= absmax.repeat_interleave(BLOCK)[: len(off)] * LARGEST_GAP * 0.5001).all())


@given(count=st.integers(1, 3 * GROUP), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_double_quantisation_keeps_largest_values_within_half_a_step(count: int, seed: int) -> None:
    absmax = random_weight(1, count, seed, 1.0).abs().flatten()
    code, step, mean = quantize_absmax(absmax)
    assert (code.shape, step.shape, mean.shape) == ((count,), (-(-count // GROUP),), ())
    assert code.untyped_storage().nbytes() == count  # no view that keeps the padding alive
    off = (dequantize_absmax(code, step, mean) - absmax).abs()
    assert bool((off <= step.repeat_interleave(GROUP)[:count] * 0.5001 + 1e-6).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("double", [True, False])
def test_output_and_gradient_are_those_of_the_dequantised_weight(kind: Quantization, bias: bool, double: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(37, 11, bias=bias)
    layer = quantize(linear, kind, double)
    weight = layer.dequantized(torch.float32)
    x, same = (torch.randn(2, 5, 37, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    found, expected = layer(x), F.linear(same, weight, linear.bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-5, atol=1e-6)
    assert list(layer.parameters()) == []
    relative = (weight - linear.weight).norm() / linear.weight.norm()
    assert relative < (0.01 if kind == "Int8" else 0.12)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_computes_in_bfloat16(kind: Quantization) -> None:
    layer = quantize(nn.Linear(64, 8), kind)
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.dequantized(torch.float32).sum(0).expand(3, 64), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("make", "bits"),
    [
        (lambda weight: Int8Linear(weight, None), 8 + 32 / 512),
        (lambda weight: NF4Linear(weight, None, double=False), 4 + 32 / 64),
        (lambda weight: NF4Linear(weight, None, double=True), 4 + 8 / 64 + 32 / (64 * 256) + 32 / 512**2),
    ],
)
def test_a_weight_takes_the_bits_it_should(make: type[QuantizedLinear], bits: float) -> None:
    assert bytes_of(make(random_weight(512, 512, 0, 1.0))) * 8 / 512**2 == pytest.approx(bits)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_stays_one_and_what_is_no_number_is_refused(kind: Quantization) -> None:
    linear = nn.Linear(64, 3, bias=False)
    with torch.no_grad():
        linear.weight[1] = 0.0
    assert bool((quantize(linear, kind, double=False).dequantized(torch.float32)[1] == 0).all())
    with torch.no_grad():
        linear.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        quantize(linear, kind)

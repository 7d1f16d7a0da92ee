"""A product of the kernels is that of plain PyTorch, for every type of weight, shape and instruction set."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.kernels import reference
from kubeformer_runtime.kernels.binding import WeightType, measured_bandwidth, product
from kubeformer_runtime.kernels.library import load_library

LIBRARY = load_library()


def random(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(WeightType),
    m=st.integers(1, 20),
    n=st.integers(1, 100),
    k=st.integers(1, 150),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_product_is_that_of_its_torch_twin(kind: WeightType, m: int, n: int, k: int, threads: int, seed: int) -> None:
    x, weight = random(m, k, seed), random(n, k, seed + 1)
    found, _ = product(LIBRARY, kind, x, weight, threads=threads)
    expected = reference.product(kind, x, weight)
    # A value half way between two integers may be rounded either way, since its scale is inverted first.
    slack = 2e-5 if kind <= WeightType.BFLOAT16 else 0.05
    torch.testing.assert_close(found, expected, atol=slack * k**0.5, rtol=2e-5)


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(WeightType), m=st.integers(2, 20), row=st.integers(0, 19))
def test_a_rows_result_is_the_same_to_the_last_bit_alone_and_among_others(kind: WeightType, m: int, row: int) -> None:
    row %= m
    x, weight = random(m, 96, 0), random(64, 96, 1)
    together, _ = product(LIBRARY, kind, x, weight, threads=2)
    alone, _ = product(LIBRARY, kind, x[row : row + 1], weight)
    assert torch.equal(together[row], alone[0])


def test_quantised_weights_are_near_the_given_ones() -> None:
    weight = random(32, 128, 0)
    for kind, most in ((WeightType.INT8, 0.01), (WeightType.INT4, 0.12)):
        off = reference.rounded_weights(kind, weight) - weight
        assert off.norm() / weight.norm() < most


def test_zeros_stay_zeros_and_a_constant_group_has_no_scale() -> None:
    x, weight = torch.ones(1, 64), torch.zeros(32, 64)
    weight[1] = 0.5
    for kind in (WeightType.INT8, WeightType.INT4):
        found, _ = product(LIBRARY, kind, x, weight)
        torch.testing.assert_close(found[0, :2], torch.tensor([0.0, 32.0]), atol=1e-6, rtol=5e-3)


def test_the_bandwidth_probe_reads_memory() -> None:
    assert measured_bandwidth(LIBRARY, threads=2, megabytes=4, repeat=1) > 1e7

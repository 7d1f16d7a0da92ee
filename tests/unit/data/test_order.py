"""Rows in steps: each once an epoch, the same for any number of ranks, the same after a restart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeformer_runtime.data.order import BatchOrder, in_order

ROWS, BATCH, WORLD, SEED = st.integers(1, 200), st.integers(1, 40), st.integers(1, 7), st.integers(0, 2**40)


@given(ROWS, BATCH, SEED, st.booleans())
def test_an_epoch_has_every_row_once(rows: int, batch: int, seed: int, by_length: bool) -> None:
    lengths = np.random.default_rng(seed).integers(1, 50, rows) if by_length else None
    order = BatchOrder(rows, batch, seed, lengths)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        assert sorted(np.concatenate([order.batch(step) for step in steps])) == list(range(rows))


@given(ROWS, BATCH, SEED, WORLD, st.integers(0, 100))
def test_the_ranks_together_have_the_batch_whatever_their_number(
    rows: int, batch: int, seed: int, world: int, step: int
) -> None:
    order = BatchOrder(rows, batch, seed)
    shares = [order.share(step, rank, world) for rank in range(world)]
    assert len({len(share.rows_B) for share in shares}) == 1  # no rank waits for another's longer batch
    counted = np.concatenate([share.rows_B[share.weights_B == 1] for share in shares])
    assert sorted(counted) == sorted(order.batch(step))
    assert {share.batch_rows for share in shares} == {len(order.batch(step))}
    assert sum(float(share.weights_B.sum()) for share in shares) == shares[0].batch_rows


@given(ROWS, BATCH, SEED, st.lists(st.integers(0, 60), max_size=8))
def test_any_step_can_be_had_without_the_ones_before(rows: int, batch: int, seed: int, steps: list[int]) -> None:
    going = BatchOrder(rows, batch, seed)
    for step in steps:
        np.testing.assert_array_equal(going.batch(step), BatchOrder(rows, batch, seed).batch(step))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order = BatchOrder(100, 100, 1)
    assert list(order.batch(0)) != list(order.batch(1))
    assert list(order.batch(0)) != list(BatchOrder(100, 100, 2).batch(0))


def test_batches_by_length_need_less_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 512, 2000)

    def padded(order: BatchOrder) -> int:
        batches = [order.batch(step) for step in range(order.steps_per_epoch)]
        return int(sum(lengths[batch].max() * len(batch) for batch in batches))

    assert padded(BatchOrder(2000, 16, 0, lengths)) < 0.65 * padded(BatchOrder(2000, 16, 0))


@given(ROWS, BATCH, WORLD)
def test_evaluation_sees_every_row_once_in_order(rows: int, batch: int, world: int) -> None:
    shares = [in_order(rows, batch, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    seen = [row for per_rank in shares for share in per_rank for row in share.rows_B[share.weights_B == 1]]
    assert sorted(seen) == list(range(rows))


def test_no_rows_make_no_batches() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        BatchOrder(0, 4, 0)

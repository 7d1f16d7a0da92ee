"""Packing: every document whole, in one row, beside others that it does not see."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kubeformer_runtime.data.prepared import IGNORE
from kubeformer_runtime.data.recipes.packed import Document, fill_rows, pack_documents, packed_batch

LENGTHS = st.lists(st.integers(1, 20), max_size=60)


@given(LENGTHS)
def test_every_document_is_in_one_row_and_no_row_is_overfull(lengths: list[int]) -> None:
    rows = fill_rows(lengths, room=20)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= 20 for row in rows)


@given(LENGTHS)
def test_no_two_rows_could_have_been_one(lengths: list[int]) -> None:
    used = sorted(sum(lengths[number] for number in row) for row in fill_rows(lengths, room=20))
    assert len(used) < 2 or used[0] + used[1] > 20


def test_a_document_fills_its_own_places_and_predicts_only_what_it_says() -> None:
    said = Document(np.asarray([5, 6, 7, 8], dtype=np.int32), np.asarray([True, False, True, True]))
    other = Document(np.asarray([9, 10], dtype=np.int32), np.asarray([False, True]))
    split = pack_documents([said, other], sequence_length=6, pad_id=0)
    batch = packed_batch(split, np.asarray([0, 0]), np.asarray([1, 0], dtype=np.float32))
    assert batch.inputs_BS[0].tolist() == [5, 6, 7, 9, 0, 0]
    assert batch.targets_BS[0].tolist() == [IGNORE, 7, 8, 10, IGNORE, IGNORE]
    assert batch.documents_BS[0].tolist() == [0, 0, 0, 1, -1, -1]
    assert (batch.targets_BS[1] == IGNORE).all()  # a filler
    assert (split.predicted_R.tolist(), split.read_R.tolist(), split.tokens) == ([3], [4], 4)

"""Validation rows: the right number, of every label, never a text that is also trained on."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeformer_runtime.data import split
from kubeformer_runtime.data.clean import CleanRow
from kubeformer_runtime.data.errors import DataError


def split_rows(rows: list[CleanRow], percent: int, seed: int) -> tuple[list[CleanRow], list[CleanRow]]:
    return split.split_rows(rows, percent, seed, key=lambda row: row.text, stratum=lambda row: row.label)


ROWS = st.lists(st.builds(CleanRow, st.sampled_from([f"t{n}" for n in range(40)]), st.sampled_from("abc")), min_size=2)


@given(ROWS, st.integers(1, 50), st.integers(0, 5))
def test_every_row_is_on_one_side_and_its_copies_with_it(rows: list[CleanRow], percent: int, seed: int) -> None:
    if len({row.text for row in rows}) < 2:
        with pytest.raises(DataError, match="1 different text"):
            split_rows(rows, percent, seed)
        return
    training, validation = split_rows(rows, percent, seed)
    assert Counter(training) + Counter(validation) == Counter(rows)
    assert training
    assert validation
    assert not {row.text for row in training} & {row.text for row in validation}


@given(st.integers(0, 1000))
def test_the_choice_does_not_depend_on_the_order_of_rows(seed: int) -> None:
    rows = [CleanRow(f"text {n}", "ab"[n % 2]) for n in range(30)]
    assert set(split_rows(rows, 20, seed)[1]) == set(split_rows(rows[::-1], 20, seed)[1])


@given(st.integers(2, 60), st.integers(2, 60), st.integers(1, 50))
def test_each_label_gives_its_share(first: int, second: int, percent: int) -> None:
    rows = [CleanRow(f"a{n}", "a") for n in range(first)] + [CleanRow(f"b{n}", "b") for n in range(second)]
    _, validation = split_rows(rows, percent, 0)
    assert len(validation) == max(1, round(len(rows) * percent / 100))
    counts = Counter(row.label for row in validation)
    for label, size in (("a", first), ("b", second)):
        assert abs(counts[label] - size * len(validation) / len(rows)) <= 1


def test_a_label_with_one_text_is_trained_on() -> None:
    rows = [CleanRow("rare", "r"), *(CleanRow(f"t{n}", "c") for n in range(9))]
    assert CleanRow("rare", "r") in split_rows(rows, 50, 0)[0]


def test_another_seed_chooses_other_rows() -> None:
    rows = [CleanRow(f"text {n}") for n in range(200)]
    assert split_rows(rows, 20, 0) != split_rows(rows, 20, 1)

"""Validation rows: the right number, of every label, never a text that is also trained on."""

from collections import Counter

import pytest
from hypothesis import given, settings
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


STEMS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=8, max_size=30, unique=True)


@settings(max_examples=10)
@given(STEMS, st.integers(0, 20))
def test_near_duplicates_are_kept_together_where_asked(variants: list[tuple[int, int]], seed: int) -> None:
    # Texts of one stem share 37 of their 39 shingles; texts of different stems share none.
    begins = [" ".join(f"s{stem}w{n}" for n in range(39)) for stem in range(6)]
    rows = [CleanRow(f"{begins[stem]} end{end}", "ab"[end % 2]) for stem, end in variants]
    stems = {stem for stem, _ in variants}
    if len(stems) < 2:
        return
    for order in (rows, rows[::-1]):
        sides = split.split_rows(
            order, 40, seed, key=lambda row: row.text, stratum=lambda row: row.label, similarity_percent=80
        )
        on = [{row.text.split("w")[0] for row in side} for side in sides]
        assert not on[0] & on[1]
        assert len(on[0]) + len(on[1]) == len(stems)
        if order is rows:
            chosen = set(sides[1])
    assert set(sides[1]) == chosen


@settings(max_examples=10)
@given(st.integers(2, 40), st.integers(0, 20))
def test_without_near_duplicates_keeping_them_together_changes_nothing(count: int, seed: int) -> None:
    rows = [CleanRow(" ".join(f"r{row}w{n}" for n in range(5)), "ab"[row % 2]) for row in range(count)]
    together = split.split_rows(
        rows, 20, seed, key=lambda row: row.text, stratum=lambda row: row.label, similarity_percent=80
    )
    assert together == split_rows(rows, 20, seed)


def test_more_rows_than_can_be_compared_are_refused_by_the_settings_name() -> None:
    with pytest.raises(DataError, match="keepTogether: Near compares 50,000 rows at most, and there are 50,001"):
        split.split_rows(range(split.MOST_NEAR_ROWS + 1), 10, 0, key=str, similarity_percent=80)


def test_another_seed_chooses_other_rows() -> None:
    rows = [CleanRow(f"text {n}") for n in range(200)]
    assert split_rows(rows, 20, 0) != split_rows(rows, 20, 1)

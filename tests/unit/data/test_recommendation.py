"""Rows of who took what become sequences; the last item of each is held out, and nothing of it is trained on."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeformer.contract.job import Recommendation
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepare import prepare_here
from kubeformer_runtime.data.prepared import IGNORE
from kubeformer_runtime.data.read import BadRow, Place, RawRow
from kubeformer_runtime.data.recipes.recommendation import (
    RecommendationSplit,
    item_names,
    recommendation_batch,
    split_of,
    time_of,
    windows,
)
from tests.unit.data.builders import no_beat, settings, write_jsonl


def rows_of(sequences: dict[str, str]) -> list[dict[str, Any]]:
    """One row a letter, times growing along each user's sequence, users in turn."""
    longest = max(map(len, sequences.values()))
    return [
        {"user": user, "item": items[index], "time": index}
        for index in range(longest)
        for user, items in sequences.items()
        if index < len(items)
    ]


def windows_of(split: RecommendationSplit, names: tuple[str, ...]) -> list[tuple[str, int]]:
    """(items of a row by name, how many of the last are predicted)."""
    items = [names[number - 1] for number in split.items_X]
    ends = zip(split.offsets_R1[:-1], split.offsets_R1[1:], strict=True)
    return [
        ("".join(items[begin:end]), int(count)) for (begin, end), count in zip(ends, split.predicted_R, strict=True)
    ]


def test_the_last_item_of_a_user_is_the_test_and_the_one_before_validates(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", rows_of({"ann": "abcde", "bob": "ca", "eve": "edc"}))
    prepared = prepare_here(settings(tmp_path, source, task=Recommendation(max_length=3)), no_beat)
    names = item_names(prepared)
    assert names == ("a", "b", "c", "d", "e")
    for split in (prepared.train, prepared.validation, prepared.test):
        assert isinstance(split, RecommendationSplit)
    assert windows_of(prepared.train, names) == [("abc", 2), ("ca", 1)]  # type: ignore[arg-type]
    assert windows_of(prepared.validation, names) == [("abcd", 1), ("ed", 1)]  # type: ignore[arg-type]
    assert windows_of(prepared.test, names) == [("bcde", 1), ("edc", 1)]  # type: ignore[arg-type]
    report = prepared.report
    assert report.test is not None
    assert report.rows_read == report.train.rows + report.validation.rows + report.test.rows
    assert report.vocabulary_size == len(names) + 1  # padding
    assert prepared.facts["popularity"] == [2, 1, 2, 0, 1]  # as trained on, and nothing else


@given(st.lists(st.lists(st.integers(1, 9), max_size=40), max_size=4), st.integers(1, 9))
def test_every_item_but_the_first_is_predicted_once_from_half_a_window_or_all_there_is(
    sequences: list[list[int]], max_length: int
) -> None:
    found = []
    for number, items in enumerate(sequences):
        for window, predicted in windows([items], max_length):
            assert 2 <= len(window) <= max_length + 1
            before = len(window) - 1 - predicted  # items that only give context
            assert before == 0 or before >= max_length // 2
            found += [(number, item) for item in window[len(window) - predicted :]]
    assert sorted(found) == sorted((number, item) for number, items in enumerate(sequences) for item in items[1:])


def test_a_batch_reads_each_item_and_is_to_say_the_next() -> None:
    split = split_of([((4, 5, 6, 7), 2), ((8, 9), 1), ((1, 2), 1)])
    rows_B, weights_B = np.array([0, 1, 2]), np.array([1, 1, 0], dtype=np.float32)
    batch = recommendation_batch(split, rows_B, weights_B)
    assert batch.items_BT.tolist() == [[4, 5, 6], [8, 0, 0], [1, 0, 0]]
    filler = [IGNORE] * 3
    assert batch.targets_BT.tolist() == [[IGNORE, 6, 7], [9, IGNORE, IGNORE], filler]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(7, 7.0), (1.5, 1.5), ("881250949", 881250949.0), ("1970-01-02", 86400.0), ("1970-01-01T01:00:00+01:00", 0.0)],
)
def test_a_time_is_a_number_or_a_date(value: object, seconds: float) -> None:
    assert time_of(RawRow(Place("rows.jsonl", 1), {"time": value}), "time") == seconds


@pytest.mark.parametrize("value", ["yesterday", True, None, math.nan, ["1"]])
def test_what_is_no_time_is_a_bad_row_that_says_so(value: object) -> None:
    found = time_of(RawRow(Place("rows.jsonl", 3), {"time": value}), "time")
    assert isinstance(found, BadRow)
    assert "'time'" in found.why


@pytest.mark.parametrize(
    ("sequences", "changes", "words"),
    [
        ({"ann": "ab", "bob": "a"}, {}, "userField"),
        ({"ann": "aaaa"}, {}, "itemField"),
        ({"ann": "abc"}, {"deduplicate": "Near"}, "data.prepare.deduplicate"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_field_to_mend(
    tmp_path: Path, sequences: dict[str, str], changes: dict[str, str], words: str
) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", rows_of(sequences))
    with pytest.raises(DataError, match=words):
        prepare_here(settings(tmp_path, source, task=Recommendation(), **changes), no_beat)


def test_held_out_files_are_refused_because_the_task_holds_out_itself(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", rows_of({"ann": "abcd"}))
    with pytest.raises(DataError, match=r"data\.test"):
        prepare_here(settings(tmp_path, source, task=Recommendation(), test=source), no_beat)


def test_what_is_held_out_is_fixed_so_a_split_by_likeness_is_refused(tmp_path: Path) -> None:
    job = settings(tmp_path, tmp_path / "rows.jsonl", task=Recommendation())
    job = job.model_copy(update={"data": job.data.model_copy(update={"keep_together": "Near"})})
    with pytest.raises(DataError, match=r"spec.data.validation.keepTogether: .* leave it out"):
        prepare_here(job, no_beat)

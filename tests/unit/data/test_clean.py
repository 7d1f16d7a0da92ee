"""Text is cleaned once and for all; rows that cannot be used are counted, and too many of them are an error."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeformer.contract.names import Reason
from kubeformer_runtime.data.clean import CleanRow, CleanRows, Normalize, clean_rows, clean_text
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.read import BadRow, Place, RawRow
from kubeformer_runtime.data.recipes import text_classification
from tests.unit.data.builders import no_beat, settings


def rows(*values: object) -> list[RawRow | BadRow]:
    return [
        RawRow(Place("f.jsonl", n), value) if isinstance(value, dict) else BadRow(Place("f.jsonl", n), str(value))
        for n, value in enumerate(values, start=1)
    ]


def clean(raw: list[RawRow | BadRow], **prepare: object) -> CleanRows[CleanRow]:
    recipe = text_classification.recipe(settings(Path("checkpoints"), Path("f.jsonl"), **prepare))
    return clean_rows(
        raw,
        recipe.example,
        recipe.prepare,
        source="data",
        uri="pvc://mail/f.jsonl",
        fields=recipe.fields,
        beat=no_beat,
    )


@given(st.text(), st.sampled_from(["NFC", "NFKC", "None"]))
def test_cleaning_twice_is_cleaning_once(text: str, normalize: Normalize) -> None:
    once = clean_text(text, normalize)
    assert clean_text(once, normalize) == once


@given(st.text(), st.sampled_from(["NFC", "NFKC"]))
def test_clean_text_has_no_control_characters_and_no_runs_of_blanks(text: str, normalize: Normalize) -> None:
    cleaned = clean_text(text, normalize)
    assert not any(unicodedata.category(c) == "Cc" and c != "\n" for c in cleaned)
    assert "  " not in cleaned
    assert "\n\n\n" not in cleaned
    assert cleaned == cleaned.strip()


def test_normalisation_unites_forms_of_one_letter() -> None:
    assert clean_text("ﬁne  Cafe\u0301\u00a0\t!\r\nnext", "NFKC") == "fine Café !\nnext"
    assert clean_text("ﬁne Cafe\u0301", "NFC") == "ﬁne Café"


def test_none_leaves_the_text_alone() -> None:
    assert clean_text("  def f():\n\treturn 1  ", "None") == "  def f():\n\treturn 1  "


def test_labels_may_be_numbers_and_booleans_and_become_text() -> None:
    result = clean(rows({"text": "a", "label": 1}, {"text": "b", "label": True}, {"text": "c", "label": " x "}))
    assert result.rows == [CleanRow("a", "1"), CleanRow("b", "true"), CleanRow("c", "x")]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"label": "x"}, "field 'text' is missing"),
        ({"text": 3, "label": "x"}, "field 'text' holds a number, not a text"),
        ({"text": "long enough", "label": None}, "field 'label' holds null, not a text or a whole number"),
        ({"text": "long enough", "label": 0.5}, "field 'label' holds a number, not a text or a whole number"),
        ({"text": "long enough", "label": ""}, "field 'label' is empty"),
        ({"text": "abc", "label": "x"}, "has 3 characters after cleaning, fewer than data.prepare.minCharacters (5)"),
        ({"text": "\x00 \x01", "label": "x"}, "field 'text' has 0 characters after cleaning"),
        ({"text": "surrogate \udcff", "label": "x"}, "field 'text' is not valid Unicode"),
        ("the line is not JSON", "the line is not JSON"),
    ],
)
def test_too_many_bad_rows_are_an_error_that_shows_the_first(row: object, why: str) -> None:
    raw = rows({"text": "a good row", "label": "x"}, row)
    with pytest.raises(DataError) as error:
        clean(raw, min_characters=5, max_bad_rows_percent=49)
    assert error.value.reason == Reason.DATA_INVALID
    assert why in error.value.message
    assert "1 of 2 rows" in error.value.message
    assert "f.jsonl line 2" in error.value.message
    assert "raise data.prepare.maxBadRowsPercent" in error.value.message


def test_as_many_bad_rows_as_allowed_are_left_out_and_counted() -> None:
    result = clean(rows(*[{"text": f"t{n}", "label": "x"} for n in range(99)], {}), max_bad_rows_percent=1)
    assert (len(result.rows), result.read, result.bad) == (99, 100, 1)


def test_a_field_that_no_row_has_names_the_fields_there_are() -> None:
    with pytest.raises(DataError) as error:
        clean(rows({"text": "a", "class": "x"}))
    assert error.value.reason == Reason.FIELD_NOT_FOUND
    assert "no row of pvc://mail/f.jsonl has the field 'label'; the rows have 'text', 'class'" in error.value.message
    assert error.value.message.endswith("Set task.textClassification.labelField")


def test_no_rows_at_all_are_an_error() -> None:
    with pytest.raises(DataError, match="has no rows"):
        clean([])

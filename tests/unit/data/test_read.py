"""Files become rows, whatever their format; what is no row is a bad row with its place."""

import gzip
import json
from pathlib import Path

import pytest

from kubeformer.contract.base import Location
from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.read import BadRow, RawRow, find_files, read_rows, shown
from tests.unit.data.builders import location


def fields(path: Path) -> list[dict[str, object]]:
    return [dict(row.fields) for row in read_rows([path], "text") if isinstance(row, RawRow)]


def bad(path: Path) -> list[str]:
    rows = [row for row in read_rows([path], "text") if isinstance(row, BadRow)]
    return [f"{row.place.line}: {row.why}" for row in rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "one", "label": "x"}\n\n{"text": "two, too", "label": "y"}\n'),
        ("a.ndjson", '\ufeff{"text": "one", "label": "x"}\n{"text": "two, too", "label": "y"}'),
        ("a.csv", 'text,label\r\none,x\r\n"two, too",y\r\n'),
        ("a.tsv", "text\tlabel\none\tx\ntwo, too\ty\n"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, content: str, compress: bool) -> None:
    path = tmp_path / (name + ".gz" if compress else name)
    path.write_bytes(gzip.compress(content.encode()) if compress else content.encode())
    assert fields(path) == [{"text": "one", "label": "x"}, {"text": "two, too", "label": "y"}]
    assert find_files(location(path), "data") == [path]


def test_plain_text_has_a_row_a_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\nstill first\n\n\nsecond\n")
    assert fields(tmp_path / "a.txt") == [{"text": "first\nstill first\n"}, {"text": "second\n"}]


def test_a_cell_with_a_newline_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines",x\n')
    assert fields(tmp_path / "a.csv") == [{"text": "two\nlines", "label": "x"}]


def test_what_is_no_row_is_bad_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n[1]\n"t"\n{"text": "\xff"}\n')
    lines = bad(tmp_path / "a.jsonl")
    assert [line.partition(" (")[0] for line in lines] == [
        "2: the line is not JSON",
        "3: the line holds a list, not an object",
        "4: the line holds a text, not an object",
        "5: the line is not UTF-8",
    ]
    (tmp_path / "a.csv").write_text("text,label\none\ntwo,x\n")
    assert bad(tmp_path / "a.csv") == ["2: the row has 1 fields, the header 2"]


def test_deeply_nested_json_is_a_bad_row_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[" * 100_000 + "\n")
    assert len(bad(tmp_path / "a.jsonl")) == 1


def test_globs_and_directories_give_sorted_files(tmp_path: Path) -> None:
    for name in ("b-2.jsonl", "b-1.jsonl", "notes.pdf", ".hidden.jsonl"):
        (tmp_path / name).write_text("{}\n")
    expected = [tmp_path / "b-1.jsonl", tmp_path / "b-2.jsonl"]
    assert find_files(Location(uri="pvc://mail/b-*.jsonl", path=str(tmp_path / "b-*.jsonl")), "data") == expected
    assert find_files(Location(uri="pvc://mail/", path=str(tmp_path)), "data") == expected


def test_a_missing_file_names_its_uri_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "spam.jsonl").touch()
    with pytest.raises(DataError) as error:
        find_files(Location(uri="pvc://mail/spma.jsonl", path=str(tmp_path / "spma.jsonl")), "data.test")
    assert error.value.reason == Reason.DATA_NOT_FOUND
    assert error.value.message.startswith("data.test: no file at pvc://mail/spma.jsonl; ")
    assert "has spam.jsonl" in error.value.message
    assert error.value.message.endswith("correct data.test.uri")


def test_a_file_of_another_kind_is_refused_with_the_kinds_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").touch()
    with pytest.raises(DataError, match="is none of") as error:
        find_files(location(tmp_path / "a.pdf"), "data")
    assert error.value.reason == Reason.DATA_INVALID


def test_a_format_that_is_named_needs_no_suffix(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("text\none\n")
    assert find_files(location(tmp_path / "rows"), "data", "CSV") == [tmp_path / "rows"]
    rows = [row.fields for row in read_rows([tmp_path / "rows"], "text", "CSV") if isinstance(row, RawRow)]
    assert rows == [{"text": "one"}]


def test_half_a_gzip_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"text": "x" * 1000}).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) - 12])
    with pytest.raises(DataError, match="not a whole gzip file"):
        fields(tmp_path / "a.jsonl.gz")


def test_messages_show_the_uri_and_not_the_path_in_the_pod() -> None:
    assert shown(Path("/mnt/claims/mail/a/b.jsonl")) == "pvc://mail/a/b.jsonl"
    assert shown(Path("/mnt/configmaps/mail/a.csv")) == "configmap://mail/a.csv"

"""Parquet and Zstandard, by pyarrow."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.read import RawRow, read_rows

ROWS = [{"text": f"row {number}", "label": number % 2} for number in range(3000)]


def fields(path: Path) -> list[dict[str, object]]:
    return [dict(row.fields) for row in read_rows([path], "text") if isinstance(row, RawRow)]


def test_rows_of_parquet_come_in_order_over_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=700)
    assert fields(path) == ROWS


def test_half_a_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read as Parquet") as error:
        fields(path)
    assert error.value.reason == Reason.DATA_INVALID


def test_zstandard_is_read_and_half_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.zst"
    content = "text\n" + "".join(f"row {number}\n" for number in range(50_000))
    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(content.encode())
    assert [row["text"] for row in fields(path)] == [f"row {number}" for number in range(50_000)]
    path.write_bytes(b"no zstd at all")
    with pytest.raises(DataError, match="not a whole zst file"):
        fields(path)

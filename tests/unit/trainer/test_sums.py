"""The digest of checkpoints: cheap, and blind to nothing that accidents do."""

import random
from pathlib import Path

import numpy as np
import pytest

from kubeformer_runtime.trainer.sums import BLOCK_BYTES, Sums, file_sums


def digest(content: bytes) -> str:
    sums, block = Sums(), np.frombuffer(content, np.uint8)
    for start in range(0, len(content), BLOCK_BYTES):
        sums.update(block[start : start + BLOCK_BYTES])
    return sums.digest()


CONTENT = random.Random(0).randbytes(100_003)


def test_a_file_has_the_digest_of_its_bytes_also_over_several_blocks(tmp_path: Path) -> None:
    for content in (b"", b"x", CONTENT, bytes(BLOCK_BYTES), bytes(BLOCK_BYTES) + CONTENT):
        path = tmp_path / "file"
        path.write_bytes(content)
        assert file_sums(path) == digest(content)


def test_any_one_bit_counts() -> None:
    lots, whole = random.Random(1), digest(CONTENT)
    for _ in range(100):
        other = bytearray(CONTENT)
        other[lots.randrange(len(other))] ^= 1 << lots.randrange(8)
        assert digest(bytes(other)) != whole


def test_words_that_change_places_count_too() -> None:
    words = [CONTENT[at : at + 8] for at in range(0, 99_992, 8)]
    for one, two in ((0, 1), (0, 1024), (5, 5000)):
        moved = list(words)
        moved[one], moved[two] = moved[two], moved[one]
        assert digest(b"".join(moved)) != digest(b"".join(words))


def test_zeros_at_the_end_are_part_of_a_file() -> None:
    assert len({digest(CONTENT + bytes(count)) for count in range(12)}) == 12


def test_it_is_defined_by_words_rows_and_columns() -> None:
    # A word of value 3 in row 0 and column 1: sums of rows 3, 0, 0 ...; of columns 0, 3, 0 ...
    import hashlib

    rows, columns = np.zeros(1024, "<u8"), np.zeros(1024, "<u8")
    rows[0] = columns[1] = 3
    expected = hashlib.sha256(rows.tobytes() + columns.tobytes() + (16).to_bytes(8, "little")).hexdigest()
    assert digest(bytes(8) + b"\x03" + bytes(7)) == f"sums:{expected}"


def test_only_the_last_block_may_be_short() -> None:
    sums = Sums()
    sums.update(np.zeros(10, np.uint8))
    with pytest.raises(ValueError, match="only the last block"):
        sums.update(np.zeros(10, np.uint8))

"""Files and directories are there in full or not at all."""

from pathlib import Path

import pytest

from kubeformer_runtime.durable import new_directory, write_bytes, write_text


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_file_is_replaced_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.json", "one")
    write_bytes(tmp_path / "new" / "a.json", b"two")
    assert (tmp_path / "new" / "a.json").read_bytes() == b"two"
    assert names(tmp_path / "new") == {"a.json"}


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "a", "text is not bytes")  # type: ignore[arg-type]
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == {"a"}


def test_a_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    with new_directory(tmp_path / "model") as fresh:
        (fresh / "deep").mkdir()
        (fresh / "deep" / "weights").write_text("w")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "deep" / "weights").read_text() == "w"
    assert names(tmp_path) == {"model"}


def test_a_directory_whose_filling_failed_never_appears(tmp_path: Path) -> None:
    def fill() -> None:
        with new_directory(tmp_path / "model") as fresh:
            (fresh / "half").write_text("h")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fill()
    assert names(tmp_path) == set()


def test_a_directory_is_replaced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with new_directory(tmp_path / "model", replace=True) as fresh:
            (fresh / content).write_text(content)
    assert names(tmp_path / "model") == {"two"}
    with pytest.raises(FileExistsError), new_directory(tmp_path / "model") as fresh:
        (fresh / "three").write_text("three")
    assert names(tmp_path / "model") == {"two"}
    assert names(tmp_path) == {"model"}


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".model.7.incomplete").mkdir()
    (tmp_path / ".models.7.incomplete").mkdir()  # another directory's
    with new_directory(tmp_path / "model"):
        pass
    assert names(tmp_path) == {"model", ".models.7.incomplete"}

"""The digest names what a model answers, and nothing else."""

import hashlib
from pathlib import Path

import pytest

from kubeformer_runtime.model import ModelError
from kubeformer_runtime.model.digest import digest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_changed_byte_in_any_file_of_the_model_changes_it(directory: Path, name: str) -> None:
    before = digest(directory)
    (directory / name).write_text("another content")
    assert digest(directory) != before


def test_swapping_two_files_changes_it(directory: Path) -> None:
    before = digest(directory)
    one, other = (directory / "config.json").read_text(), (directory / "tokenizer.json").read_text()
    (directory / "config.json").write_text(other)
    (directory / "tokenizer.json").write_text(one)
    assert digest(directory) != before


def test_what_only_tells_about_the_model_lies_outside(directory: Path) -> None:
    before = digest(directory)
    for name in ("kubeformer.json", "README.md", ".gitattributes"):
        (directory / name).write_text("words")
    assert digest(directory) == before


def test_it_can_be_checked_with_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    line = hashlib.sha256(b"{}").hexdigest() + "  config.json\n"
    assert digest(tmp_path) == "sha256:" + hashlib.sha256(line.encode()).hexdigest()


def test_an_empty_directory_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"):
        digest(tmp_path)

"""The tokenizer: any text survives it, training it is repeatable, and Hugging Face reads its files alike."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.tokenizer import TextTokenizer
from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from tests.unit.data.builders import mails

TEXTS = [mail["text"] for mail in mails(60)]
TOKENIZER = TextTokenizer.train(TEXTS, 320, frame_end=True)


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    (ids,) = TOKENIZER.encode([text])
    assert TOKENIZER.decode(ids) == text
    assert all(3 <= token < TOKENIZER.vocabulary_size for token in ids)


def test_training_depends_on_the_texts_alone() -> None:
    assert TextTokenizer.train(iter(TEXTS), 320, frame_end=True).files == TOKENIZER.files


@settings(max_examples=30)
@given(st.text(max_size=60), st.integers(3, 20))
def test_a_framed_text_is_cut_but_keeps_its_frame(text: str, max_length: int) -> None:
    (ids,) = TOKENIZER.encode_framed([text], max_length)
    assert len(ids) <= max_length
    assert (ids[0], ids[-1]) == (TOKENIZER.bos_id, TOKENIZER.eos_id)


@given(st.text(max_size=60), st.integers(3, 20))
def test_the_engine_reads_a_text_as_the_trainer_did(
    tmp_path_factory: pytest.TempPathFactory, text: str, most: int
) -> None:
    directory = tmp_path_factory.getbasetemp() / "engine"
    if not directory.exists():
        directory.mkdir()
        TOKENIZER.save(directory)
    assert EngineTokenizer.load(directory).encode_framed([text], most) == TOKENIZER.encode_framed([text], most)


def test_what_was_saved_is_loaded_again(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.files == TOKENIZER.files
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (0, 1, 2)
    assert loaded.encode(TEXTS) == TOKENIZER.encode(TEXTS)


def test_hugging_face_reads_the_files_alike(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    TOKENIZER.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs(TEXTS[:5], truncation=True, max_length=16)["input_ids"] == TOKENIZER.encode_framed(TEXTS[:5], 16)
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)


def test_special_tokens_of_a_model_may_be_texts_or_objects(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<bos>"}, "eos_token": None}))
    loaded = TextTokenizer.load(tmp_path)
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (0, 1, None)


@pytest.mark.parametrize("content", [None, "{", '{"model": 1}'])
def test_a_model_without_a_usable_tokenizer_is_invalid(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError) as error:
        TextTokenizer.load(tmp_path)
    assert error.value.reason == Reason.MODEL_INVALID
    assert "tokenizer.json" in error.value.message


def test_a_vocabulary_too_small_for_every_byte_is_refused() -> None:
    with pytest.raises(DataError, match="vocabularySize is 100"):
        TextTokenizer.train(TEXTS, 100)

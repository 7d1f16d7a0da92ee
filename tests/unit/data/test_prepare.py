"""From files to arrays: nothing is lost uncounted, nothing leaks, and a job's rows never change under it."""

import threading
from pathlib import Path

import numpy as np
import pytest

from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepare import prepare, prepare_here
from kubeformer_runtime.data.prepared import Prepared
from kubeformer_runtime.data.recipes.language_model import LanguageModelSplit
from kubeformer_runtime.data.recipes.text_classification import ClassificationSplit, label_names
from tests.unit.data.builders import LanguageModel, mails, no_beat, settings, write_jsonl


def test_every_row_that_was_read_is_accounted_for(tmp_path: Path) -> None:
    rows = [*mails(200), *mails(30), {"text": ""}, {"text": mails(1)[0]["text"] + " !", "label": "ham"}]
    source = write_jsonl(tmp_path / "mail.jsonl", rows)
    test = write_jsonl(tmp_path / "test.jsonl", mails(5))
    report = prepare_here(settings(tmp_path, source, test=test, deduplicate="Near"), no_beat).report
    assert report.test is not None
    assert (report.rows_read, report.rows_bad, report.leaked) == (237, 1, 11)
    assert (report.duplicates, report.test.rows) == (25, 5)
    kept = report.train.rows + report.validation.rows + report.test.rows
    assert kept == report.rows_read - report.rows_bad - report.leaked - report.duplicates - report.near_duplicates


def test_labels_are_sorted_names_and_rows_keep_theirs(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mail.jsonl", mails(90))
    prepared = prepare_here(settings(tmp_path, source), no_beat)
    assert label_names(prepared) == ("ham", "spam")
    assert len(prepared.validation) == 9
    assert isinstance(prepared.train, ClassificationSplit)
    assert isinstance(prepared.validation, ClassificationSplit)
    total = np.bincount(prepared.train.labels_R, minlength=2) + np.bincount(prepared.validation.labels_R, minlength=2)
    assert total.tolist() == [60, 30]


def test_training_rows_that_validation_holds_are_not_trained_on(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mail.jsonl", mails(40))
    validation = write_jsonl(tmp_path / "validation.jsonl", mails(10))
    prepared = prepare_here(settings(tmp_path, source, validation=validation), no_beat)
    assert (prepared.report.leaked, prepared.report.train.rows, prepared.report.validation.rows) == (10, 30, 10)


def test_rank_0_prepares_and_the_others_find_the_same_arrays(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mail.jsonl", mails(60))
    job = settings(tmp_path / "checkpoints", source)
    found: list[Prepared] = []
    beats: list[int] = []
    other = threading.Thread(target=lambda: found.append(prepare(job, lambda: beats.append(1), rank=1)))
    other.start()
    first = prepare(job, no_beat, rank=0)
    other.join(60)
    second = found[0]
    assert beats  # it said that it lives while it waited
    assert isinstance(first.train, ClassificationSplit)
    assert isinstance(second.train, ClassificationSplit)
    np.testing.assert_array_equal(first.train.token_ids_X, second.train.token_ids_X)
    np.testing.assert_array_equal(first.train.labels_R, second.train.labels_R)
    assert first.report == second.report
    assert first.text_tokenizer.files == second.text_tokenizer.files


def test_a_restarted_job_goes_on_with_the_rows_it_began_with(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mail.jsonl", mails(60))
    job = settings(tmp_path / "checkpoints", source)
    before = prepare(job, no_beat).report
    write_jsonl(source, mails(20))
    assert prepare(job, no_beat).report == before
    source.unlink()
    assert prepare(job, no_beat).report == before


def test_another_job_prepares_anew(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mail.jsonl", mails(60))
    first = prepare(settings(tmp_path / "checkpoints", source, uid="u1"), no_beat).report
    write_jsonl(source, mails(50))
    second = prepare(settings(tmp_path / "checkpoints", source, uid="u2"), no_beat).report
    assert first.digest != second.digest


def test_a_failed_preparation_leaves_nothing_that_looks_like_data(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mail.jsonl", [{"text": "a"}])
    with pytest.raises(DataError):
        prepare(settings(tmp_path / "checkpoints", source), no_beat)
    write_jsonl(source, mails(30))  # mended in place
    assert prepare(settings(tmp_path / "checkpoints", source), no_beat).report.rows_read == 30


def test_a_language_model_gets_packed_blocks(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(mail["text"] for mail in mails(50)))
    job = settings(tmp_path / "checkpoints", tmp_path / "book.txt", task=LanguageModel(sequence_length=16))
    prepared = prepare(job, no_beat)
    assert isinstance(prepared.train, LanguageModelSplit)
    assert prepared.train.blocks_RS1.shape[1] == 17
    assert prepared.report.train.rows == 45
    assert prepared.report.train.tokens == int((prepared.train.lengths_R - 1).sum()) + 1


def test_a_base_models_own_tokenizer_is_used(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mail.jsonl", mails(60))
    first = prepare_here(settings(tmp_path, source, vocabulary_size=280), no_beat)
    first.text_tokenizer.save(tmp_path / "base")
    second = prepare_here(settings(tmp_path, source, base=tmp_path / "base", vocabulary_size=400), no_beat)
    assert second.text_tokenizer.files == first.text_tokenizer.files


@pytest.mark.parametrize(
    ("rows", "test_rows", "says"),
    [
        ([{"text": f"t{n}", "label": "x"} for n in range(9)], None, "all training rows have the label 'x'"),
        ([{"text": f"t{n}", "label": f"l{n}"} for n in range(99)], None, "different values in 89 rows"),
        (mails(30), [{"text": "new", "label": "eggs"}], "data.test: label 'eggs' is not among the labels"),
        ([{"text": "same", "label": "x"}] * 5, None, "1 different text is left"),
    ],
)
def test_data_that_cannot_train_a_classifier_is_refused(
    tmp_path: Path, rows: list[dict[str, str]], test_rows: list[dict[str, str]] | None, says: str
) -> None:
    source = write_jsonl(tmp_path / "mail.jsonl", rows)
    test = write_jsonl(tmp_path / "test.jsonl", test_rows) if test_rows else None
    with pytest.raises(DataError) as error:
        prepare_here(settings(tmp_path, source, test=test), no_beat)
    assert error.value.reason == Reason.DATA_INVALID
    assert says in error.value.message


def test_a_base_model_that_is_not_there_is_named_by_its_uri(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mail.jsonl", mails(30))
    with pytest.raises(DataError, match="no directory at pvc://mail/nowhere") as error:
        prepare_here(settings(tmp_path, source, base=tmp_path / "nowhere"), no_beat)
    assert error.value.reason == Reason.MODEL_NOT_FOUND

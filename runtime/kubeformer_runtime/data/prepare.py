"""prepare: from the settings to token ids, once for all ranks of a job.

    read -> clean -> deduplicate -> split -> tokenizer -> encode

Rank 0 does the work and puts the result under the checkpoint directory; the other ranks wait for it there.
Restarts find it again, so the rows and their order are frozen with the first preparation of a job, whatever
happens to the files afterwards.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubeformer.contract.base import Location
from kubeformer.contract.job import JobSettings, TextClassification
from kubeformer.contract.names import Reason
from kubeformer_runtime.data import store
from kubeformer_runtime.data.clean import BEAT_EVERY_ROWS, CleanRow, CleanRows, clean_rows
from kubeformer_runtime.data.deduplicate import Deduplicator
from kubeformer_runtime.data.encode import encode_classification, encode_language_model
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepared import (
    Beat,
    ClassificationSplit,
    DataReport,
    LanguageModelSplit,
    Prepared,
    PreparedClassification,
    PreparedLanguageModel,
    SplitReport,
)
from kubeformer_runtime.data.read import find_files, read_rows
from kubeformer_runtime.data.split import split_rows
from kubeformer_runtime.data.tokenizer import TextTokenizer

_FORMAT = 1  # raise it when the same settings give other arrays than before
_TOKENIZER_CHARACTERS = 50_000_000  # more text makes a BPE slower, not better
_WAIT_SECONDS = 0.5


def prepare(settings: JobSettings, beat: Beat, *, rank: int = 0) -> Prepared:
    """PreparedClassification or PreparedLanguageModel, by the task. Raises DataError.

    `beat` is called every few seconds or more often, also while waiting for rank 0.
    """
    directory = Path(settings.checkpoint.directory, "data", _key(settings))
    if rank == 0 and not store.is_stored(directory):
        store.store(prepare_here(settings, beat), directory)
    while not store.is_stored(directory):
        beat()
        time.sleep(_WAIT_SECONDS)
    beat()
    return store.load(directory)


def _key(settings: JobSettings) -> str:
    """Names the preparation of this job: another one where a setting changed that has a say in it."""
    parts = {
        "format": _FORMAT,
        "uid": settings.uid,
        "task": settings.task.model_dump(mode="json"),
        "data": settings.data.model_dump(mode="json"),
        "base": settings.model.base.model_dump(mode="json") if settings.model.base else None,
        "seed": settings.training.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(slots=True)
class _Rows:
    """Clean rows by split, and what happened to the others."""

    train: list[CleanRow]
    validation: list[CleanRow]
    test: list[CleanRow] | None
    read: int
    bad: int
    duplicates: int = 0
    near_duplicates: int = 0
    leaked: int = 0


def prepare_here(settings: JobSettings, beat: Beat) -> Prepared:
    """The work itself, in this process and without a cache."""
    rows = _collect(settings, beat)
    task = settings.task
    if isinstance(task, TextClassification):
        labels, warnings = _labels(rows, task)
        tokenizer = _tokenizer(settings, rows.train, beat, frame_end=True)
        train, validation = (
            encode_classification(part, tokenizer, labels, task.max_length, beat)
            for part in (rows.train, rows.validation)
        )
        test = None
        if rows.test is not None:
            test = encode_classification(rows.test, tokenizer, labels, task.max_length, beat)
        report = _report(rows, tokenizer, warnings, train, validation, test)
        return PreparedClassification(train, validation, test, label_names=labels, tokenizer=tokenizer, report=report)
    tokenizer = _tokenizer(settings, rows.train, beat, frame_end=False)
    blocks, validation_blocks = (
        encode_language_model(part, tokenizer, task.sequence_length, beat) for part in (rows.train, rows.validation)
    )
    test_blocks = None
    if rows.test is not None:
        test_blocks = encode_language_model(rows.test, tokenizer, task.sequence_length, beat)
    report = _report(rows, tokenizer, (), blocks, validation_blocks, test_blocks)
    return PreparedLanguageModel(blocks, validation_blocks, test_blocks, tokenizer=tokenizer, report=report)


def _collect(settings: JobSettings, beat: Beat) -> _Rows:
    data = settings.data
    source = _read(settings, data.source, "data", beat)
    validation = _read(settings, data.validation, "data.validation", beat) if data.validation else None
    test = _read(settings, data.test, "data.test", beat) if data.test else None
    parts = [part for part in (source, validation, test) if part is not None]
    rows = _Rows(
        train=[],
        validation=validation.rows if validation else [],
        test=test.rows if test else None,
        read=sum(part.read for part in parts),
        bad=sum(part.bad for part in parts),
    )
    held_out = [*rows.validation, *(rows.test or [])]
    kept = _deduplicated(source.rows, held_out, rows, settings, beat)
    if data.validation is None:
        rows.train, rows.validation = split_rows(kept, data.validation_percent, settings.training.seed)
    else:
        rows.train = kept
    for name, left in (("data", rows.train), ("data.validation", rows.validation), ("data.test", rows.test)):
        if left is not None and not left:
            raise DataError(Reason.DATA_INVALID, f"{name}: no row is left after cleaning and deduplication")
    return rows


def _read(settings: JobSettings, location: Location, name: str, beat: Beat) -> CleanRows:
    task = settings.task
    files = find_files(location, name)
    beat()
    return clean_rows(
        read_rows(files, task.text_field),
        settings.data.prepare,
        source=name,
        uri=location.uri,
        text_field=task.text_field,
        label_field=task.label_field if isinstance(task, TextClassification) else None,
        beat=beat,
    )


def _deduplicated(
    source: Sequence[CleanRow], held_out: Sequence[CleanRow], counts: _Rows, settings: JobSettings, beat: Beat
) -> list[CleanRow]:
    """Training rows without repetitions, and without rows that validation or test files hold."""
    prepare = settings.data.prepare
    if prepare.deduplicate == "None":
        return list(source)
    seen = Deduplicator(prepare.similarity_percent if prepare.deduplicate == "Near" else None)
    for number, row in enumerate(held_out):
        seen.add(row.text)
        if number % BEAT_EVERY_ROWS == 0:
            beat()
    kept = []
    for number, row in enumerate(source):
        if number % BEAT_EVERY_ROWS == 0:
            beat()
        match = seen.add(row.text)
        if match is None:
            kept.append(row)
        elif match.original < len(held_out):
            counts.leaked += 1
        elif match.exact:
            counts.duplicates += 1
        else:
            counts.near_duplicates += 1
    return kept


def _labels(rows: _Rows, task: TextClassification) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Label names, sorted, and warnings. Raises DataError where they cannot be what the user means."""
    counts = Counter(row.label for row in rows.train)
    labels = tuple(sorted(counts))
    if len(labels) < 2:
        raise DataError(
            Reason.DATA_INVALID,
            f"data: all training rows have the {task.label_field} {labels[0]!r}; a classifier needs two labels or more",
        )
    if len(labels) > 20 and len(labels) * 2 > len(rows.train):
        raise DataError(
            Reason.DATA_INVALID,
            f"data: field {task.label_field!r} has {len(labels)} different values in {len(rows.train)} rows, which are "
            "not labels. Set task.textClassification.labelField",
        )
    for name, part in (("data.validation", rows.validation), ("data.test", rows.test or [])):
        unknown = sorted({row.label for row in part} - set(labels))
        if unknown:
            raise DataError(
                Reason.DATA_INVALID,
                f"{name}: {task.label_field} {', '.join(map(repr, unknown[:5]))} is not among the labels of the "
                f"training rows ({', '.join(map(repr, labels[:10]))}). Correct it, or add training rows that have it",
            )
    rare = [label for label in labels if counts[label] < 5]
    warnings = (f"fewer than five training rows have the label {', '.join(map(repr, rare[:5]))}",) if rare else ()
    return labels, warnings


def _tokenizer(settings: JobSettings, rows: Sequence[CleanRow], beat: Beat, *, frame_end: bool) -> TextTokenizer:
    base = settings.model.base
    if base is not None:
        if not Path(base.path).is_dir():
            raise DataError(Reason.MODEL_NOT_FOUND, f"model: no directory at {base.uri}")
        return TextTokenizer.load(Path(base.path))
    texts = _sampled(rows, beat)
    return TextTokenizer.train(texts, settings.data.vocabulary_size, frame_end=frame_end)


def _sampled(rows: Sequence[CleanRow], beat: Beat) -> Iterator[str]:
    """Every n-th text, so that the tokenizer sees at most about _TOKENIZER_CHARACTERS of all parts of the data."""
    total = sum(len(row.text) for row in rows)
    step = -(-total // _TOKENIZER_CHARACTERS)
    for number, row in enumerate(rows[:: max(1, step)]):
        if number % BEAT_EVERY_ROWS == 0:
            beat()
        yield row.text


def _report(
    rows: _Rows,
    tokenizer: TextTokenizer,
    warnings: tuple[str, ...],
    train: ClassificationSplit | LanguageModelSplit,
    validation: ClassificationSplit | LanguageModelSplit,
    test: ClassificationSplit | LanguageModelSplit | None,
) -> DataReport:
    digest = hashlib.sha256()
    for name, part in (("train", rows.train), ("validation", rows.validation), ("test", rows.test or [])):
        digest.update(name.encode() + b"\0")
        for row in part:
            for text in (row.text, row.label):
                encoded = text.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return DataReport(
        rows_read=rows.read,
        rows_bad=rows.bad,
        duplicates=rows.duplicates,
        near_duplicates=rows.near_duplicates,
        leaked=rows.leaked,
        vocabulary_size=tokenizer.vocabulary_size,
        digest=f"sha256:{digest.hexdigest()}",
        train=SplitReport(len(rows.train), _tokens(train)),
        validation=SplitReport(len(rows.validation), _tokens(validation)),
        test=SplitReport(len(rows.test), _tokens(test)) if rows.test is not None and test is not None else None,
        warnings=warnings,
    )


def _tokens(split: ClassificationSplit | LanguageModelSplit) -> int:
    if isinstance(split, ClassificationSplit):
        return len(split.token_ids_X)
    return int((split.lengths_R - 1).sum()) + (1 if len(split) else 0)

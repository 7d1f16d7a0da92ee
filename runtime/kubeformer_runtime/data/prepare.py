"""prepare: from the settings to arrays, once for all ranks of a job, whatever the kind of task (see `recipes`).

    read -> examples -> deduplicate -> divide -> tokenizer -> mix by weight -> encode

Rank 0 does the work and puts the result under the checkpoint directory; the other ranks wait for it there.
Restarts find it again, so the rows and their order are frozen with the first preparation of a job, whatever
happens to the files afterwards.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kubeformer.contract.base import Location
from kubeformer.contract.job import Format, JobSettings
from kubeformer.contract.names import Reason
from kubeformer_runtime.data import store
from kubeformer_runtime.data.clean import CleanRows, clean_rows
from kubeformer_runtime.data.deduplicate import find_duplicates
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.fetch import fetch
from kubeformer_runtime.data.mix import check_weights, epoch_rows, mixed
from kubeformer_runtime.data.prepared import Beat, DataReport, Prepared, SourceReport, SplitReport
from kubeformer_runtime.data.read import find_files, read_rows
from kubeformer_runtime.data.recipes import Encoded, Parts, Recipe, recipe_for
from kubeformer_runtime.data.tokenizer import TextTokenizer

_FORMAT = 3  # raise it when the same settings give other arrays than before
_WAIT_SECONDS = 0.5


def prepare(settings: JobSettings, beat: Beat, *, rank: int = 0) -> Prepared:
    """The job's data as its task's recipe makes it. Raises DataError.

    `beat` is called every few seconds or more often, also while waiting for rank 0.
    """
    directory = Path(settings.checkpoint.directory, "data", _key(settings))
    recipe = recipe_for(settings)
    if rank == 0 and not store.is_stored(directory):
        store.store(prepare_here(settings, beat), directory)
    while not store.is_stored(directory):
        beat()
        time.sleep(_WAIT_SECONDS)
    beat()
    return store.load(directory, recipe.split_type)


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
class _Counts:
    """What happened to the rows that are no examples."""

    read: int = 0
    bad: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    leaked: int = 0


def prepare_here(settings: JobSettings, beat: Beat) -> Prepared:
    """The work itself, in this process and without a cache."""
    recipe, counts = recipe_for(settings), _Counts()
    parts, origins = _collect(settings, recipe, counts, beat)
    tokenizer = recipe.tokenizer(parts.train, beat)
    train, sources = _mixed(settings, parts.train, origins)
    encoded = recipe.encode(replace(parts, train=train), tokenizer, beat)
    for name, split in (("data", encoded.train), ("data.validation", encoded.validation)):
        if not len(split):
            raise DataError(Reason.DATA_INVALID, f"{name}: its rows make no sequence to train on; add longer texts")
    report = _report(recipe, parts, counts, encoded, tokenizer, sources)
    return Prepared(encoded.train, encoded.validation, encoded.test, encoded.facts, tokenizer, report)


def _collect(
    settings: JobSettings, recipe: Recipe[Any], counts: _Counts, beat: Beat
) -> tuple[Parts[Any], dict[int, int]]:
    """The examples of all parts, and for each of them by its id() the number of the source it is from."""
    data = settings.data
    if not data.all_sources:
        raise DataError(Reason.SETTINGS_INVALID, "spec.data.uri is left out: name the rows")
    if (wrong := check_weights([place.weight for place in data.all_sources])) is not None:
        raise DataError(Reason.SETTINGS_INVALID, f"spec.data.sources[].weight: {wrong}")

    filters = {"languages": data.prepare.languages, "maxRepetitionPercent": data.prepare.max_repetition_percent}
    for name, value in filters.items():
        if value not in ((), None):  # better refused than passed over
            raise DataError(
                Reason.SETTINGS_INVALID, f"spec.data.prepare.{name}: this version has no such filter; leave it out"
            )

    def read(location: Location | None, name: str, format: Format = "Auto") -> list[Any] | None:
        if location is None:
            return None
        found = _read(settings, recipe, location, name, format, beat)
        counts.read, counts.bad = counts.read + found.read, counts.bad + found.bad
        return found.rows

    source: list[Any] = []
    origins: dict[int, int] = {}
    for number, place in enumerate(data.all_sources):
        name = "data" if data.source is not None else f"data.sources[{number}]"
        rows = read(place.location, name, place.format) or []
        source += rows
        if len(data.all_sources) > 1:
            origins.update((id(row), number) for row in rows)
    validation, test = read(data.validation, "data.validation"), read(data.test, "data.test")
    kept = _deduplicated(source, [*(validation or []), *(test or [])], recipe, counts, settings, beat)
    for name, left in (("data", kept), ("data.validation", validation), ("data.test", test)):
        if left is not None and not left:
            raise DataError(Reason.DATA_INVALID, f"{name}: no row is left after cleaning and deduplication")
    parts = recipe.divide(kept, validation, beat)
    return (parts if test is None else Parts(parts.train, parts.validation, test)), origins


def _mixed(
    settings: JobSettings, train: Sequence[Any], origins: dict[int, int]
) -> tuple[Sequence[Any], tuple[SourceReport, ...]]:
    """Training examples as often as an epoch has them (see `mix`), and what each of several sources gives."""
    places = settings.data.all_sources
    if len(places) < 2:
        return train, ()
    weights = [place.weight for place in places]
    sources_R = [origins[id(row)] for row in train]
    rows = [sources_R.count(number) for number in range(len(places))]
    counted = zip(places, rows, epoch_rows(rows, weights), strict=True)
    report = tuple(SourceReport(place.name, place.weight, count, times) for place, count, times in counted)
    return [train[row] for row in mixed(sources_R, weights, settings.training.seed)], report


def _read(
    settings: JobSettings, recipe: Recipe[Any], location: Location, name: str, format: Format, beat: Beat
) -> CleanRows[Any]:
    fetch(location, name, beat)
    files = find_files(location, name, format)
    beat()
    return clean_rows(
        read_rows(files, next(iter(recipe.fields)), format),
        recipe.example,
        settings.data.prepare,
        source=name,
        uri=location.uri,
        fields=recipe.fields,
        beat=beat,
    )


def _deduplicated(
    source: Sequence[Any],
    held_out: Sequence[Any],
    recipe: Recipe[Any],
    counts: _Counts,
    settings: JobSettings,
    beat: Beat,
) -> Sequence[Any]:
    """Training examples without repetitions, and without those that validation or test files hold."""
    prepare = settings.data.prepare
    if prepare.deduplicate == "None":
        return source
    percent = prepare.similarity_percent if prepare.deduplicate == "Near" else None
    matches = find_duplicates([recipe.key(row) for row in (*held_out, *source)], percent, beat)
    kept = []
    for row, match in zip(source, matches[len(held_out) :], strict=True):
        if match is None:
            kept.append(row)
        elif match.original < len(held_out):
            counts.leaked += 1
        elif match.exact:
            counts.duplicates += 1
        else:
            counts.near_duplicates += 1
    return kept


def _report(
    recipe: Recipe[Any],
    parts: Parts[Any],
    counts: _Counts,
    encoded: Encoded,
    tokenizer: TextTokenizer | None,
    sources: tuple[SourceReport, ...],
) -> DataReport:
    digest = hashlib.sha256()
    for name, part in (("train", parts.train), ("validation", parts.validation), ("test", parts.test or [])):
        digest.update(name.encode() + b"\0")
        for example in part:
            for text in recipe.digest_parts(example):
                content = text.encode()
                digest.update(len(content).to_bytes(8, "little") + content)
    vocabulary_size = encoded.vocabulary_size
    if vocabulary_size is None:
        vocabulary_size = tokenizer.vocabulary_size if tokenizer is not None else 0
    test = None
    if parts.test is not None and encoded.test is not None:
        test = SplitReport(len(parts.test), encoded.test.tokens)
    return DataReport(
        rows_read=counts.read,
        rows_bad=counts.bad,
        duplicates=counts.duplicates,
        near_duplicates=counts.near_duplicates,
        leaked=counts.leaked,
        vocabulary_size=vocabulary_size,
        digest=f"sha256:{digest.hexdigest()}",
        train=SplitReport(len(parts.train), encoded.train.tokens),
        validation=SplitReport(len(parts.validation), encoded.validation.tokens),
        test=test,
        warnings=encoded.warnings,
        sources=sources,
    )

"""Duplicates: exact ones by a hash of the clean text, near ones by MinHash and locality-sensitive hashing.

Similarity is the Jaccard index of the sets of three-word shingles (see `near`). Signatures that share a band
only name candidates; each is verified against the exact index, so a row is never dropped for a similarity it
does not have, and a pair above the threshold is missed with a probability below one in a thousand.

Memory: 512 bytes of signature and 8 bytes a band for each different text, and up to 256 MiB of shingles; those of
further texts are computed again where they are compared.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kubeformer_runtime.data.near import (
    PERMUTATIONS,
    Hashes,
    MinHash,
    Shingles,
    Signatures,
    band_keys,
    bands_for,
    jaccard,
)

_CHUNK_CHARACTERS = 1 << 20
_CHUNK_TEXTS = 1024
_KEPT_SHINGLES = 1 << 25  # 256 MiB of hashes that need not be computed again
_REMEMBERED = 4096  # shingle sets kept for the next comparison
_DEVIATIONS = 3.3  # how far below the threshold an estimate must be to save the exact comparison: errs once in 2,000


@dataclass(frozen=True, slots=True)
class Match:
    """The earlier text that a text repeats."""

    original: int
    exact: bool


def text_key(text: str) -> bytes:
    """Equal for equal texts."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def find_duplicates(
    texts: Sequence[str], similarity_percent: int | None = None, beat: Callable[[], None] = lambda: None
) -> list[Match | None]:
    """For each text None (it is new: the first of its kind) or the kept text that it repeats.

    `similarity_percent` None: exact duplicates only. First wins: a text is compared with the kept texts before
    it, so the texts that are kept are no near-duplicates of each other, and running again over them drops none.
    """
    result = _exact(texts, beat)
    if similarity_percent is None:
        return result
    distinct = [number for number, match in enumerate(result) if match is None]
    likeness = _Likeness([texts[number] for number in distinct], similarity_percent / 100, beat)
    kept_in: dict[int, list[int]] = {}  # bucket: kept texts
    merged: dict[int, int] = {}  # dropped text: the kept one
    for row, buckets in likeness.shared():
        earlier = sorted({other for bucket in buckets for other in kept_in.get(bucket, ())})
        original = next(likeness.alike(row, earlier), None)
        if original is None:
            for bucket in buckets:
                kept_in.setdefault(bucket, []).append(row)
        else:
            merged[distinct[row]] = distinct[original]
    for number, match in enumerate(result):
        if match is None and number in merged:
            result[number] = Match(merged[number], exact=False)
        elif match is not None and match.original in merged:
            result[number] = Match(merged[match.original], exact=True)
    return result


def near_groups(
    texts: Sequence[str], similarity_percent: int, beat: Callable[[], None] = lambda: None
) -> NDArray[np.int64]:
    """The group of each text, named by its first member: texts are in one group where a chain of near-duplicates
    leads from one to the other. Which texts belong together does not depend on their order.
    """
    result = _exact(texts, beat)
    distinct = [number for number, match in enumerate(result) if match is None]
    likeness = _Likeness([texts[number] for number in distinct], similarity_percent / 100, beat)
    parent = list(range(len(distinct)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    seen: dict[int, list[int]] = {}
    for row, buckets in likeness.shared():
        earlier = sorted({other for bucket in buckets for other in seen.get(bucket, ())})
        apart = (other for other in earlier if root(other) != root(row))  # asked again after each union
        for other in likeness.alike(row, apart):
            low, high = sorted((root(row), root(other)))
            parent[high] = low
        for bucket in buckets:
            seen.setdefault(bucket, []).append(row)
    group = {number: distinct[root(row)] for row, number in enumerate(distinct)}
    return np.asarray(
        [group[number if match is None else match.original] for number, match in enumerate(result)], dtype=np.int64
    )


def _exact(texts: Sequence[str], beat: Callable[[], None]) -> list[Match | None]:
    first: dict[bytes, int] = {}
    result: list[Match | None] = []
    for number, text in enumerate(texts):
        if number % _CHUNK_TEXTS == 0:
            beat()
        original = first.setdefault(text_key(text), number)
        result.append(None if original == number else Match(original, exact=True))
    return result


class _Likeness:
    """Distinct texts, their signatures, and the buckets in which two of them or more lie."""

    def __init__(self, texts: Sequence[str], threshold: float, beat: Callable[[], None]) -> None:
        self._texts, self._threshold, self._beat = texts, threshold, beat
        self._shingles = Shingles()
        self._hashes: dict[int, Hashes] = {}  # of the first texts, while memory allows
        self._sets: dict[int, Hashes] = {}
        self._signatures_RP = self._signed()
        deviation = (threshold * (1.0 - threshold) / PERMUTATIONS) ** 0.5
        self._least_equal = (threshold - _DEVIATIONS * deviation) * PERMUTATIONS

    def _signed(self) -> Signatures:
        minhash = MinHash()
        parts = [np.empty((0, PERMUTATIONS), dtype=np.uint32)]
        row = kept = 0
        for chunk in _chunks(self._texts):
            self._beat()
            hashes_X, begins_R = self._shingles.of_all(chunk)
            parts.append(minhash.signatures(hashes_X, begins_R))
            if kept + len(hashes_X) <= _KEPT_SHINGLES:
                kept += len(hashes_X)
                self._hashes.update(enumerate(np.split(hashes_X, begins_R[1:]), start=row))
            row += len(chunk)
        return np.concatenate(parts)

    def shared(self) -> Iterator[tuple[int, list[int]]]:
        """(row, numbers of its buckets) in order, for the rows that share a bucket with another row."""
        bands, rows = bands_for(self._threshold)
        found_rows, found_buckets, buckets = [], [], 0
        for key_R in band_keys(self._signatures_RP, bands, rows):
            self._beat()
            order_R = np.argsort(key_R, kind="stable")
            starts = np.ones(len(order_R), dtype=bool)
            starts[1:] = key_R[order_R[1:]] != key_R[order_R[:-1]]
            bucket_R = np.cumsum(starts) - 1
            crowded = np.bincount(bucket_R)[bucket_R] > 1
            found_rows.append(order_R[crowded])
            found_buckets.append(bucket_R[crowded] + buckets)
            buckets += len(order_R)
        rows_M, buckets_M = np.concatenate(found_rows), np.concatenate(found_buckets)
        order_M = np.argsort(rows_M, kind="stable")
        rows_M, buckets_M = rows_M[order_M], buckets_M[order_M]
        cuts = np.flatnonzero(np.diff(rows_M)) + 1
        for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(rows_M)], strict=True)):
            if number % _CHUNK_TEXTS == 0:
                self._beat()
            if begin < end:
                yield int(rows_M[begin]), buckets_M[begin:end].tolist()

    def alike(self, row: int, others: Iterable[int]) -> Iterator[int]:
        """Those of `others`, in order, whose similarity to `row` reaches the threshold."""
        mine_P = self._signatures_RP[row]
        for other in others:
            if np.count_nonzero(self._signatures_RP[other] == mine_P) < self._least_equal:
                continue
            if jaccard(self._set(row), self._set(other)) >= self._threshold:
                yield other

    def _set(self, row: int) -> Hashes:
        known = self._sets.get(row)
        if known is None:
            if len(self._sets) >= _REMEMBERED:
                self._sets.clear()
            hashes = self._hashes.get(row)
            known = np.unique(hashes) if hashes is not None else self._shingles.of(self._texts[row])
            self._sets[row] = known
        return known


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if characters >= _CHUNK_CHARACTERS or len(chunk) >= _CHUNK_TEXTS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk

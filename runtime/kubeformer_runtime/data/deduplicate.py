"""Duplicates: exact ones by a hash of the clean text, near ones by MinHash and locality-sensitive hashing.

Similarity is the Jaccard index of the sets of three-word shingles (lower case). MinHash only finds
candidates; each is verified against the exact index, so a row is never dropped for a similarity it does not
have, and a pair above the threshold is missed with a probability below one in a thousand.

A. Broder, "On the resemblance and containment of documents", 1997; Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", chapter 3.
"""

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SHINGLE_WORDS = 3
PERMUTATIONS = 128
MISSED = 1e-3  # the probability with which a pair just at the threshold may go unseen
_WORD = re.compile(r"\w+|[^\w\s]+")
_MIX = np.uint64(0x9E3779B97F4A7C15)


def text_key(text: str) -> bytes:
    """Equal for equal texts."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


class Shingles:
    """Turns texts into sets of shingle hashes. Words are hashed once and remembered."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}

    def of(self, text: str) -> Hashes:
        """Sorted distinct 64-bit hashes; never empty."""
        words = _WORD.findall(text.lower()) or [text]
        ids = np.fromiter((self._word(word) for word in words), dtype=np.uint64, count=len(words))
        width = min(SHINGLE_WORDS, len(ids))
        count = len(ids) - width + 1
        hashes = np.zeros(count, dtype=np.uint64)
        for offset in range(width):
            hashes = _mixed(hashes * _MIX + ids[offset : offset + count])
        return np.unique(hashes)

    def _word(self, word: str) -> int:
        known = self._words.get(word)
        if known is None:
            digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
            known = self._words[word] = int.from_bytes(digest, "little")
        return known


def _mixed(hashes: Hashes) -> Hashes:
    hashes = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(29))


def jaccard(left: Hashes, right: Hashes) -> float:
    """Size of the intersection over size of the union, of two sets as sorted arrays."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / (len(left) + len(right) - common)


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows a band) for PERMUTATIONS values: as selective as MISSED allows at the threshold."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if (1.0 - threshold**rows) ** bands <= MISSED:
            return bands, rows
    return PERMUTATIONS, 1


class MinHash:
    """PERMUTATIONS minima of a shingle set; two sets agree in each with the probability of their Jaccard index."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.Generator(np.random.PCG64(seed))
        size = (PERMUTATIONS, 1)
        self._factors = generator.integers(0, 2**64, size, dtype=np.uint64) | np.uint64(1)
        self._offsets = generator.integers(0, 2**64, size, dtype=np.uint64)

    def signature(self, hashes: Hashes) -> Hashes:
        """PERMUTATIONS values."""
        minima = np.full(PERMUTATIONS, np.iinfo(np.uint64).max, dtype=np.uint64)
        for begin in range(0, len(hashes), 4096):  # bounded memory for a book in one row
            part = hashes[None, begin : begin + 4096]
            minima = np.minimum(minima, _mixed(part * self._factors + self._offsets).min(axis=1))
        return minima


@dataclass(slots=True)
class Deduplicator:
    """Takes texts one by one and says which earlier text each of them repeats.

    `similarity_percent` None: exact duplicates only. The answer depends on the order of the texts alone.
    """

    similarity_percent: int | None = None
    _exact: dict[bytes, int] = field(default_factory=dict)
    _count: int = 0
    _shingles: Shingles = field(default_factory=Shingles)
    _minhash: MinHash = field(default_factory=MinHash)
    _kept: dict[int, Hashes] = field(default_factory=dict)
    _buckets: defaultdict[tuple[int, bytes], list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, text: str) -> "Match | None":
        """None: the text is new and kept. Otherwise the number (from 0, of all added texts) of its original."""
        number, self._count = self._count, self._count + 1
        key = text_key(text)
        original = self._exact.get(key)
        if original is not None:
            return Match(original, exact=True)
        if self.similarity_percent is None:
            self._exact[key] = number
            return None
        hashes = self._shingles.of(text)
        threshold = self.similarity_percent / 100
        bands, rows = bands_for(threshold)
        signature = self._minhash.signature(hashes)
        keys = [(band, signature[band * rows : (band + 1) * rows].tobytes()) for band in range(bands)]
        for candidate in sorted({number for key_ in keys for number in self._buckets.get(key_, ())}):
            if jaccard(hashes, self._kept[candidate]) >= threshold:
                self._exact[key] = candidate
                return Match(candidate, exact=False)
        self._exact[key] = number
        self._kept[number] = hashes
        for key_ in keys:
            self._buckets[key_].append(number)
        return None


@dataclass(frozen=True, slots=True)
class Match:
    """The earlier text that a text repeats."""

    original: int
    exact: bool

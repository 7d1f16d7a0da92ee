"""How alike texts are: sets of three-word shingles, their Jaccard index, and MinHash signatures that estimate it.

All of it works on many texts at a time. Legend: R texts, X shingles of all of them, P permutations, B bands.

A. Broder, "On the resemblance and containment of documents", 1997; Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", chapter 3.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Signatures = NDArray[np.uint32]

SHINGLE_WORDS = 3
PERMUTATIONS = 128
MISSED = 1e-3  # the probability with which a pair just at the threshold may go unseen
_BLOCK = 1 << 15  # shingles hashed at a time: 128 KiB, so that all permutations run within the second-level cache
_WORD = re.compile(r"\w+|[^\w\s]+")
_MIX = np.uint64(0x9E3779B97F4A7C15)


class _Words(dict[str, int]):
    """Hash of each word, computed when it is first seen."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
        self[word] = number = int.from_bytes(digest, "little")
        return number


class Shingles:
    """Turns texts into shingle hashes: lower case, words and runs of punctuation, three in a row."""

    def __init__(self) -> None:
        self._words = _Words()

    def of(self, text: str) -> Hashes:
        """The set of one text: sorted distinct 64-bit hashes; never empty."""
        return np.unique(self.of_all([text])[0])

    def of_all(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
        """(hashes_X, begins_R): text r has hashes_X[begins_R[r]:begins_R[r + 1]], repeated ones included.

        A text of fewer than three words is one shingle, so each text has one at least.
        """
        ids: list[int] = []
        counts_R = np.empty(len(texts), dtype=np.int64)
        known = self._words.__getitem__
        for number, text in enumerate(texts):
            words = _WORD.findall(text.lower()) or [text]
            counts_R[number] = max(len(words), SHINGLE_WORDS)
            ids.extend(map(known, words))
            ids.extend([0] * (SHINGLE_WORDS - len(words)))
        ids_W = np.fromiter(ids, dtype=np.uint64, count=len(ids))
        hashes_W = np.zeros(max(0, len(ids_W) - SHINGLE_WORDS + 1), dtype=np.uint64)
        for offset in range(SHINGLE_WORDS):
            hashes_W = _mixed(hashes_W * _MIX + ids_W[offset : offset + len(hashes_W)])
        # Windows that begin in a text's last two words reach into the next text: they are no shingles.
        ends_R = np.cumsum(counts_R)
        inside_W = np.ones(len(hashes_W), dtype=bool)
        for back in range(1, SHINGLE_WORDS):
            inside_W[ends_R[:-1] - back] = False
        begins_R = ends_R - counts_R - (SHINGLE_WORDS - 1) * np.arange(len(texts))
        return hashes_W[inside_W], begins_R


def _mixed(hashes: Hashes) -> Hashes:
    hashes = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(29))


def jaccard(left: Hashes, right: Hashes) -> float:
    """Size of the intersection over size of the union, of two sets as sorted arrays."""
    small, large = sorted((left, right), key=len)
    places = np.searchsorted(large, small)
    places[places == len(large)] = 0
    common = int((large[places] == small).sum())
    return common / (len(left) + len(right) - common)


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows a band) for PERMUTATIONS values: as selective as MISSED allows at the threshold."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if (1.0 - threshold**rows) ** bands <= MISSED:
            return bands, rows
    return PERMUTATIONS, 1


class MinHash:
    """PERMUTATIONS minima of a shingle set; two sets agree in each with the probability of their Jaccard index.

    A permutation is a x + b modulo 2^32 with an odd a: one multiplication and one addition on hashes that are
    already well mixed.
    """

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.Generator(np.random.PCG64(seed))
        self._factors_P = generator.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32) | np.uint32(1)
        self._offsets_P = generator.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32)

    def signatures(self, hashes_X: Hashes, begins_R: NDArray[np.int64]) -> Signatures:
        """[R, P], from what Shingles.of_all gives; repeated hashes change nothing."""
        result_RP = np.empty((len(begins_R), PERMUTATIONS), dtype=np.uint32)
        short_X = (hashes_X >> np.uint64(32)).astype(np.uint32)
        ends_R = np.append(begins_R[1:], len(hashes_X))
        first = 0
        while first < len(begins_R):
            begin = int(begins_R[first])
            last = max(first + 1, int(np.searchsorted(ends_R, begin + _BLOCK, side="right")))
            block = short_X[begin : ends_R[last - 1]]
            result_RP[first:last] = self._minima(block, begins_R[first:last] - begin)
            first = last
        return result_RP

    def _minima(self, block: NDArray[np.uint32], starts: NDArray[np.int64]) -> Signatures:
        result = np.full((PERMUTATIONS, len(starts)), 0xFFFFFFFF, dtype=np.uint32)
        pieces = [(block, starts)]
        if len(starts) == 1:  # a book in one row: in pieces of bounded size
            pieces = [(block[at : at + _BLOCK], starts) for at in range(0, len(block), _BLOCK)]
        for piece, places in pieces:
            scratch = np.empty_like(piece)
            for number in range(PERMUTATIONS):
                np.multiply(piece, self._factors_P[number], out=scratch)
                np.add(scratch, self._offsets_P[number], out=scratch)
                if len(places) == 1:
                    result[number, 0] = min(result[number, 0], scratch.min())
                else:
                    np.minimum.reduceat(scratch, places, out=result[number])
        return result.T


def band_keys(signatures_RP: Signatures, bands: int, rows: int) -> Hashes:
    """[B, R]: one number for each band of each signature; equal bands have equal numbers."""
    keys_BR = np.empty((bands, len(signatures_RP)), dtype=np.uint64)
    for band in range(bands):
        key_R = np.full(len(signatures_RP), band, dtype=np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            key_R = _mixed(key_R * _MIX + signatures_RP[:, column])
        keys_BR[band] = key_R
    return keys_BR

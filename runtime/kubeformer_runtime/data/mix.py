"""Several sources mixed by weight: how often each training example comes in an epoch, and in which order.

The weight says how often a row of a source is trained on, relative to the rows of the others: with weights 1 and 3 each
row of the second comes three times where one of the first comes once. So equal weights, whatever they are, leave every
source its natural share, and a source's share of what is trained on is weight x rows / (the sum of that of all).

An epoch has each row of the source with the smallest weight exactly once, and no row of any source fewer times. What a
weight leaves beyond whole passes goes to rows chosen by a hash of seed, source and row, the same ones in every epoch; a
source's part of an epoch is exact to half a row. Repetitions become rows of their own before texts are packed, so
`order.BatchOrder` permutes and cuts them like any others: step n stays a pure function of seed and n.
"""

import hashlib
from collections.abc import Sequence
from fractions import Fraction

MAX_RATIO = 100  # of two weights: repetitions are tokenised and stored, so an epoch must not grow without bound


def check_weights(weights: Sequence[float]) -> str | None:
    """What is wrong with these weights, to follow the name of the setting; None where nothing is."""
    for weight in weights:
        if not 0.0 < weight < float("inf"):  # NaN is neither
            return f"{weight} is no weight; give a finite number above 0, or leave the source out"
    if weights and max(weights) > MAX_RATIO * min(weights):
        return (
            f"{max(weights)} is more than {MAX_RATIO} times {min(weights)}; repetitions are stored, so bring the "
            "weights closer together"
        )
    return None


def epoch_rows(rows: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows each source gives to an epoch, from the rows it has: at least those; equal for equal weights.

    The smallest weight among sources that have rows is one pass. Weights as `check_weights` wants them.
    """
    exact = [Fraction(str(weight)) for weight in weights]  # as written: 0.1 is a tenth
    smallest = min((weight for weight, count in zip(exact, rows, strict=True) if count), default=Fraction(1))
    return [int(count * weight / smallest + Fraction(1, 2)) for weight, count in zip(exact, rows, strict=True)]


def mixed(sources_R: Sequence[int], weights: Sequence[float], seed: int) -> list[int]:
    """Row numbers of an epoch, from each row's source (index into `weights`): every row once in their order, then
    those that come a second time in their order, and so on, so that repetitions lie far apart.
    """
    rows_of: list[list[int]] = [[] for _ in weights]
    for row, source in enumerate(sources_R):
        rows_of[source].append(row)
    times_R = [0] * len(sources_R)
    for source, wanted in enumerate(epoch_rows([len(rows) for rows in rows_of], weights)):
        if not rows_of[source]:
            continue
        passes, more = divmod(wanted, len(rows_of[source]))
        for row in rows_of[source]:
            times_R[row] = passes
        ranked = range(len(rows_of[source])) if not more else _ranked(len(rows_of[source]), source, seed)
        for place in ranked[:more]:
            times_R[rows_of[source][place]] += 1
    most = max(times_R, default=0)
    return [row for turn in range(most) for row, times in enumerate(times_R) if times > turn]


def _ranked(count: int, source: int, seed: int) -> list[int]:
    """Places 0 to count - 1 in an order of their own for each seed and source."""

    def rank(place: int) -> bytes:
        return hashlib.blake2b(f"{source} {place}".encode(), digest_size=16, key=str(seed).encode()).digest()

    return sorted(range(count), key=rank)

"""An interpolated Kneser-Ney n-gram model over token ids: what a small language model has to beat.

Modified Kneser-Ney: three discounts for each order, from counts of counts (Chen and Goodman 1999,
https://doi.org/10.1006/csla.1999.0128, section 3). The highest order counts n-grams; a lower one counts in how many
different places (after how many different tokens) each of its n-grams stands. Every order is interpolated with the one
below it, the lowest with the uniform distribution over the vocabulary. Pure; arrays over sorted n-grams, no loops over
tokens: two million of them take seconds.

Legend: X tokens of the text that is counted, Y of the one that is scored, G different n-grams, H different contexts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
WITHOUT_COUNTS = (0.5, 1.0, 1.5)  # discounts where a text is too small to tell them, as in KenLM's --discount_fallback


@dataclass(frozen=True, slots=True)
class _Order:
    """N-grams of one length, as numbers in the base of the vocabulary's size, the oldest token first."""

    gram_G: Ints  # ascending
    kept_G: Floats  # counts less their discounts
    context_H: Ints  # ascending
    total_H: Floats  # sum of the counts of the n-grams that begin with a context
    freed_H: Floats  # share of that sum that the discounts took: the weight of the order below


class KneserNey:
    """P(token | up to order - 1 tokens before it).

    tokens_X: ids in [0, vocabulary), one stream. Raises ValueError where n-grams do not fit into 63 bits, or where the
    text is shorter than one n-gram.
    """

    def __init__(self, tokens_X: npt.ArrayLike, vocabulary: int, order: int = 5) -> None:
        stream_X = _ids(tokens_X, vocabulary)
        if vocabulary**order >= 2**63:
            raise ValueError(f"{order}-grams over {vocabulary} tokens do not fit into 63 bits; take a lower order")
        if len(stream_X) < max(order, 2):
            raise ValueError(f"the text has {len(stream_X)} tokens, less than one {order}-gram; take more text")
        self.vocabulary, self.order = vocabulary, order
        self._orders = [
            _order(*_counted(stream_X, vocabulary, n, highest=n == order), vocabulary) for n in range(1, order + 1)
        ]

    def probabilities(self, tokens_Y: npt.ArrayLike) -> Floats:
        """Of each token given those before it in the same array, the first given none. Shape: Y."""
        stream_Y = _ids(tokens_Y, self.vocabulary)
        found_Y = np.full(len(stream_Y), 1.0 / self.vocabulary)
        for n, order in enumerate(self._orders[: len(stream_Y)], start=1):
            gram_P = _grams(stream_Y, self.vocabulary, n)
            context, seen_P = _look_up(order.context_H, gram_P // self.vocabulary)
            gram, known_P = _look_up(order.gram_G, gram_P)
            kept_P = np.where(known_P, order.kept_G[gram], 0.0)
            lower_P = found_Y[n - 1 :]
            mixed_P = kept_P / order.total_H[context] + order.freed_H[context] * lower_P
            found_Y[n - 1 :] = np.where(seen_P, mixed_P, lower_P)
        return found_Y

    def bits(self, tokens_Y: npt.ArrayLike) -> float:
        """What all tokens but the first cost, as a language model predicts them."""
        return float(-np.log2(self.probabilities(tokens_Y)[1:]).sum())


def discounts(count_G: Ints) -> tuple[float, float, float]:
    """What is taken from n-grams counted once, twice, and more often.

    WITHOUT_COUNTS where no n-gram is counted once, twice, three or four times, or where the estimate would take more
    than there is.
    """
    n1, n2, n3, n4 = (int((count_G == times).sum()) for times in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return WITHOUT_COUNTS
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 <= less <= times for times, less in enumerate(found, 1)) else WITHOUT_COUNTS


def _counted(stream_X: Ints, vocabulary: int, n: int, *, highest: bool) -> tuple[Ints, Ints]:
    """(n-grams, their counts), or below the highest order (n-grams, number of different tokens before them)."""
    if highest:
        return np.unique(_grams(stream_X, vocabulary, n), return_counts=True)
    longer = np.unique(_grams(stream_X, vocabulary, n + 1))
    return np.unique(longer % vocabulary**n, return_counts=True)


def _order(gram_G: Ints, count_G: Ints, vocabulary: int) -> _Order:
    less_G = np.array(discounts(count_G))[np.minimum(count_G, 3) - 1]
    context_H, first_H = np.unique(gram_G // vocabulary, return_index=True)
    total_H = np.add.reduceat(count_G.astype(np.float64), first_H)
    freed_H = np.add.reduceat(less_G, first_H) / total_H
    return _Order(gram_G, count_G - less_G, context_H, total_H, freed_H)


def _grams(stream_X: Ints, vocabulary: int, n: int) -> Ints:
    """The n-gram that ends at each token from the n-th on."""
    count = len(stream_X) - n + 1
    gram_P: Ints = np.zeros(count, dtype=np.int64)
    for place in range(n):
        gram_P = gram_P * vocabulary + stream_X[place : place + count]
    return gram_P


def _look_up(sorted_G: Ints, wanted_P: Ints) -> tuple[Any, Any]:
    """(indices, whether the number is there at all; where not, the index is any)."""
    index_P = np.minimum(np.searchsorted(sorted_G, wanted_P), len(sorted_G) - 1)
    return index_P, sorted_G[index_P] == wanted_P


def _ids(tokens_X: npt.ArrayLike, vocabulary: int) -> Ints:
    ids: Ints = np.asarray(tokens_X, dtype=np.int64)
    if len(ids) and not (ids.min() >= 0 and ids.max() < vocabulary):
        raise ValueError(f"token ids go from {ids.min()} to {ids.max()}; they must be in [0, {vocabulary})")
    return ids

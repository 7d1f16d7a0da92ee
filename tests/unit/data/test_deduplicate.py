"""Exact duplicates are found by hash, near ones by MinHash: checked against the exact Jaccard index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.data.deduplicate import Deduplicator, Match, MinHash, Shingles, bands_for, jaccard

WORDS = [f"w{n}" for n in range(400)]


def text_of(generator: np.random.Generator, words: int) -> str:
    return " ".join(generator.choice(WORDS, words))


def changed(text: str, edits: int, generator: np.random.Generator) -> str:
    words = text.split()
    for position in generator.choice(len(words), edits, replace=False):
        words[position] = f"edit{generator.integers(1 << 30)}"
    return " ".join(words)


def exact_jaccard(left: str, right: str) -> float:
    """The definition, on sets of word triples."""

    def triples(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[n : n + 3]) for n in range(max(1, len(words) - 2))}

    return len(triples(left) & triples(right)) / len(triples(left) | triples(right))


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=30))
def test_exact_duplicates_point_at_their_first_text(texts: list[str]) -> None:
    seen = Deduplicator()
    for number, text in enumerate(texts):
        first = texts.index(text)
        assert seen.add(text) == (None if first == number else Match(first, exact=True))


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 30))
def test_shingle_hashes_have_the_jaccard_index_of_the_texts(seed: int, edits: int) -> None:
    generator = np.random.default_rng(seed)
    left = text_of(generator, 60)
    right = changed(left, edits, generator)
    shingles = Shingles()
    assert jaccard(shingles.of(left), shingles.of(right)) == pytest.approx(exact_jaccard(left, right))


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 20))
def test_minhash_estimates_the_jaccard_index(seed: int, edits: int) -> None:
    generator = np.random.default_rng(seed)
    left = text_of(generator, 80)
    right = changed(left, edits, generator)
    shingles, minhash = Shingles(), MinHash()
    sets = shingles.of(left), shingles.of(right)
    estimate = float(np.mean(minhash.signature(sets[0]) == minhash.signature(sets[1])))
    # 128 coin throws: five standard deviations are at most 0.22.
    assert abs(estimate - jaccard(*sets)) < 0.23


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(50, 95))
def test_a_text_is_dropped_only_for_a_kept_text_that_is_similar_enough(seed: int, percent: int) -> None:
    generator = np.random.default_rng(seed)
    texts: list[str] = []
    for _ in range(12):
        texts.append(text_of(generator, 50))
        texts += [changed(texts[-1], int(generator.integers(0, 8)), generator) for _ in range(2)]
    seen = Deduplicator(percent)
    kept: list[int] = []
    for number, text in enumerate(texts):
        match = seen.add(text)
        if match is None:
            kept.append(number)
        else:
            assert match.original in kept
            assert exact_jaccard(text, texts[match.original]) >= percent / 100


def test_hardly_any_near_duplicate_is_missed() -> None:
    generator = np.random.default_rng(7)
    missed = 0
    for _ in range(200):
        original = text_of(generator, 120)
        copy = changed(original, 4, generator)  # each edit spoils three of 118 triples
        if exact_jaccard(original, copy) < 0.8:
            continue
        seen = Deduplicator(80)
        seen.add(original)
        missed += seen.add(copy) is None
    assert missed == 0


@pytest.mark.parametrize("percent", [10, 50, 80, 95, 100])
def test_bands_miss_fewer_than_one_in_a_thousand_pairs_at_the_threshold(percent: int) -> None:
    bands, rows = bands_for(percent / 100)
    assert bands * rows <= 128
    assert (1 - (percent / 100) ** rows) ** bands <= 1e-3


def test_the_same_texts_give_the_same_answer_in_every_process() -> None:
    # Python's own hash() of texts differs from process to process; this value must not.
    assert MinHash().signature(Shingles().of("to be or not to be"))[:2].tolist() == SIGNATURE


def test_texts_without_words_are_compared_too() -> None:
    seen = Deduplicator(80)
    assert seen.add("") is None
    assert seen.add("!!!") is None
    assert seen.add("!!!") == Match(1, exact=True)


SIGNATURE = [3833687494494283428, 8825441567501070988]

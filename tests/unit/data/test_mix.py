"""Sources mixed by weight: exact shares, nothing left out, nothing random but by the seed."""

from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer.contract.job import Recommendation, Source, Task
from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.mix import MAX_RATIO, check_weights, epoch_rows, mixed
from kubeformer_runtime.data.order import BatchOrder
from kubeformer_runtime.data.prepare import prepare_here
from kubeformer_runtime.data.prepared import Prepared, SourceReport
from tests.unit.data import builders

# Sources with their weights (tenths, up to tenfold), and which of them each row is from.
WEIGHTS = st.lists(st.integers(1, 10).map(lambda tenths: tenths / 10), min_size=1, max_size=4)
MIXES = WEIGHTS.flatmap(
    lambda weights: st.tuples(st.just(weights), st.lists(st.integers(0, len(weights) - 1), min_size=1, max_size=40))
)
few = settings(max_examples=30)


@few
@given(MIXES, st.integers(0, 9))
def test_shares_are_exact_to_half_a_row_an_epoch(mix: tuple[list[float], list[int]], seed: int) -> None:
    weights, sources = mix
    rows, drawn = Counter(sources), Counter(sources[row] for row in mixed(sources, weights, seed))
    smallest = min(Fraction(str(weights[source])) for source in rows)
    for source, count in rows.items():
        assert abs(drawn[source] - count * Fraction(str(weights[source])) / smallest) <= Fraction(1, 2)


@few
@given(MIXES, st.integers(0, 9))
def test_every_row_comes_before_any_comes_again_and_the_smallest_weights_rows_come_once(
    mix: tuple[list[float], list[int]], seed: int
) -> None:
    weights, sources = mix
    epoch = mixed(sources, weights, seed)
    assert epoch[: len(sources)] == list(range(len(sources)))
    times = Counter(epoch)
    smallest = min(weights[source] for source in sources)
    for source in set(sources):
        of_source = {times[row] for row, its in enumerate(sources) if its == source}
        assert max(of_source) - min(of_source) <= 1  # no row is preferred to another of its source
        if weights[source] == smallest:
            assert of_source == {1}


@few
@given(st.lists(st.integers(0, 2), max_size=30), st.floats(0.01, 100))
def test_equal_weights_change_nothing(sources: list[int], weight: float) -> None:
    assert mixed(sources, [weight] * 3, seed=0) == list(range(len(sources)))


def test_the_seed_alone_chooses_what_a_fraction_repeats() -> None:
    sources = [0] * 5 + [1] * 20
    assert mixed(sources, [1.0, 1.5], 7) == mixed(sources, [1.0, 1.5], 7)
    assert mixed(sources, [1.0, 1.5], 7) != mixed(sources, [1.0, 1.5], 8)


def test_a_source_without_rows_lengthens_no_epoch() -> None:
    assert epoch_rows([0, 4, 10], [0.1, 1.0, 2.0]) == [0, 4, 20]


@pytest.mark.parametrize("weights", [[1.0, 0.0], [-1.0], [float("nan"), 1.0], [float("inf")], [1.0, MAX_RATIO + 1.0]])
def test_weights_that_mean_nothing_are_refused(weights: list[float]) -> None:
    assert check_weights(weights) is not None


def prepared_with(directory: Path, *weights: float, task: Task | None = None) -> Prepared:
    """40 mails, 12 in the first source and 28 in the second, of which 4 validate."""
    rows = builders.mails(40)
    first = builders.write_jsonl(directory / "a.jsonl", rows[:12])
    second = builders.write_jsonl(directory / "b.jsonl", rows[12:])
    job = builders.settings(directory, first, task=task)
    sources = tuple(
        Source(name=name, location=builders.location(path), weight=weight)
        for name, path, weight in zip("ab", (first, second), weights, strict=True)
    )
    data = job.data.model_copy(update={"source": None, "sources": sources})
    return prepare_here(job.model_copy(update={"data": data}), builders.no_beat)


def test_a_job_trains_on_its_sources_by_weight_and_reports_it(tmp_path: Path) -> None:
    plain, weighed = prepared_with(tmp_path, 1.0, 1.0), prepared_with(tmp_path, 3.0, 1.0)
    first, second = plain.report.sources
    assert (first.rows + second.rows, len(plain.train), len(plain.validation)) == (36, 36, 4)
    assert (first.epoch_rows, second.epoch_rows) == (first.rows, second.rows)
    assert weighed.report.sources == (
        SourceReport("a", 3.0, first.rows, 3 * first.rows),
        SourceReport("b", 1.0, second.rows, second.rows),
    )
    assert len(weighed.train) == 3 * first.rows + second.rows
    assert BatchOrder(len(weighed.train), 4, seed=0).steps_per_epoch == -(-len(weighed.train) // 4)
    # What validates, and what the report accounts for, is each row once.
    assert len(weighed.validation) == len(plain.validation)
    assert (weighed.report.digest, weighed.report.train.rows) == (plain.report.digest, 36)


def test_a_weight_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"spec.data.sources\[\].weight: 0.0 is no weight") as error:
        prepared_with(tmp_path, 1.0, 0.0)
    assert error.value.reason == Reason.SETTINGS_INVALID


def test_the_moments_of_a_users_sequence_cannot_come_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"spec.data.sources\[\].weight: .* give all sources the same weight"):
        prepared_with(tmp_path, 1.0, 2.0, task=Recommendation())

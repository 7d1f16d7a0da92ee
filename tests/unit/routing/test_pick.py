"""A request goes to the replica with the fewest requests under way; equals take turns."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kubeformer.routing.pick import pick
from kubeformer.routing.table import Endpoint

endpoints = st.lists(st.integers(1, 20).map(lambda n: Endpoint(f"10.0.0.{n}")), min_size=1, max_size=8, unique=True)


def test_nobody_ready_means_nobody_picked() -> None:
    assert pick([], {}, 0) is None


def test_a_replica_that_failed_this_request_is_not_asked_again() -> None:
    a, b = Endpoint("10.0.0.1"), Endpoint("10.0.0.2")
    assert pick([a, b], {b: 100}, 0, avoid={a}) == b
    assert pick([a, b], {}, 0, avoid={a, b}) is None


@given(
    endpoints,
    st.dictionaries(st.integers(1, 20).map(lambda n: Endpoint(f"10.0.0.{n}")), st.integers(0, 5)),
    st.integers(0, 1000),
)
def test_the_least_busy_is_picked(ready: list[Endpoint], busy: dict[Endpoint, int], turn: int) -> None:
    chosen = pick(ready, busy, turn)
    assert chosen in ready
    assert all(busy.get(chosen, 0) <= busy.get(other, 0) for other in ready)


@given(endpoints)
def test_equal_replicas_take_turns(ready: list[Endpoint]) -> None:
    counts = Counter(pick(ready, {}, turn) for turn in range(3 * len(ready)))
    assert set(counts.values()) == {3}

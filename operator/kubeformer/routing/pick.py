"""Which of a model's replicas gets the next request: the one with the fewest requests under way."""

from collections.abc import Collection, Mapping, Sequence

from kubeformer.routing.table import Endpoint


def pick(
    endpoints: Sequence[Endpoint],
    outstanding: Mapping[Endpoint, int],
    turn: int,
    avoid: Collection[Endpoint] = (),
) -> Endpoint | None:
    """The least busy endpoint that is not in `avoid`, or None where none is left.

    Args:
        endpoints: the replicas that are ready.
        outstanding: requests under way by endpoint; one that is not there has none.
        turn: a number that grows by one a request; it breaks ties, so that equal replicas take turns.
        avoid: replicas that already failed this request.
    """
    candidates = [endpoint for endpoint in endpoints if endpoint not in avoid]
    if not candidates:
        return None
    fewest = min(outstanding.get(endpoint, 0) for endpoint in candidates)
    idle = [endpoint for endpoint in candidates if outstanding.get(endpoint, 0) == fewest]
    return idle[turn % len(idle)]

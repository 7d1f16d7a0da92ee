"""How often to save, where the settings leave it open. Pure.

Every checkpoint costs training `cost` seconds; a failure costs, on average, half an interval of work that has to be
done again. Young (1974) balances the two at sqrt(2 * cost * MTBF); Daly (2006, https://doi.org/10.1016/j.future.2004.11.016,
equation 37) adds the terms that matter where failures are frequent.
"""

import math

SHORTEST, LONGEST = 10.0, 3600.0
DOUBTED_HOURS = 24.0  # before anything is known, one failure of a worker in this time is taken for likely


def mean_time_between_failures(seconds: float, failures: int, workers: int) -> float:
    """Seconds between failures of the whole job, after `failures` in `seconds` of training on `workers` pods.

    The mean of a Gamma posterior whose prior weighs as much as one failure in DOUBTED_HOURS a worker.
    """
    return (DOUBTED_HOURS * 3600 / workers + seconds) / (1 + failures)


def best_interval(cost: float, mtbf: float) -> float:
    """Seconds of work between two checkpoints that lose the least, for a cost in seconds. Daly's higher-order estimate.

    Raises ValueError unless both are positive.
    """
    if cost <= 0 or mtbf <= 0:
        raise ValueError(f"cost {cost} and mean time between failures {mtbf} have to be positive")
    if cost >= 2 * mtbf:
        return mtbf
    ratio = cost / (2 * mtbf)
    return math.sqrt(2 * cost * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


def expected_loss(interval: float, cost: float, mtbf: float) -> float:
    """The share of time that checkpoints and repeated work take, failures being exponential: what is minimised."""
    spent = mtbf * math.expm1((interval + cost) / mtbf)
    return 1 - interval / spent


def automatic(cost: float, duration: float, mtbf: float) -> float:
    """Seconds between the begins of two checkpoints: the best interval, but never so short that two would overlap.

    `cost` is what training loses by one, `duration` how long it takes until one is on storage.
    """
    return min(LONGEST, max(SHORTEST, 2 * duration, best_interval(max(cost, 1e-3), mtbf)))

"""The largest of many numbers, quickly: through the peaks of runs of 128 neighbours. Pure.

`amax` and `sum` over short runs use the whole width of the machine, `argmax` and `topk` over a vocabulary do not:
they take ten times as long. The k largest numbers lie in the k runs with the highest peaks, and the rest of the
vocabulary need not be looked at. Shapes: S rows, V numbers, B runs, C numbers of a run or candidates.
"""

import numpy as np
import torch
from torch import Tensor

RUN = 128


def _runs(value_SV: Tensor) -> tuple[Tensor, Tensor | None]:
    """(S, B', RUN) of the full runs, and (S, C) of the shorter one at the end."""
    full = value_SV.shape[1] // RUN * RUN
    tail = value_SV[:, full:] if full < value_SV.shape[1] else None
    return value_SV[:, :full].view(len(value_SV), -1, RUN), tail


def run_peaks(value_SV: Tensor) -> Tensor:
    """(S, B): the largest number of each run."""
    runs, tail = _runs(value_SV)
    if tail is None:
        return runs.amax(-1)
    return torch.cat([runs.amax(-1), tail.amax(-1, keepdim=True)], dim=1)


def run_sums(value_SV: Tensor) -> Tensor:
    """(S, B): the sum of each run."""
    runs, tail = _runs(value_SV)
    if tail is None:
        return runs.sum(-1)
    return torch.cat([runs.sum(-1), tail.sum(-1, keepdim=True)], dim=1)


def gather_run(value_SV: Tensor, run_S: Tensor, beyond: float = 0.0) -> Tensor:
    """(S, RUN): each row's numbers of one run; `beyond` stands where the run ends early."""
    index_SC = run_S[:, None] * RUN + torch.arange(RUN, device=value_SV.device)
    size = value_SV.shape[1]
    found_SC = value_SV.gather(1, index_SC.clamp(max=size - 1))
    return found_SC if size % RUN == 0 else found_SC.masked_fill_(index_SC >= size, beyond)


def argmax(value_SV: Tensor) -> list[int]:
    """Each row's place of the largest number; of equal ones the first."""
    run_S = run_peaks(value_SV).argmax(-1)
    place_S = gather_run(value_SV, run_S, float("-inf")).argmax(-1)
    places: list[int] = (run_S * RUN + place_S).tolist()
    return places


def descending(value_V: Tensor, least: float) -> Tensor:
    """(C,): the numbers of at least `least`, the largest first; numpy does this in a fraction of torch's time."""
    if value_V.device.type != "cpu" or value_V.dtype != torch.float32:
        return value_V[value_V >= least].sort(descending=True).values
    array = value_V.numpy()
    return torch.from_numpy(np.sort(array[array >= least])[::-1].copy())


def largest(value_V: Tensor, count: int, peak_B: Tensor) -> tuple[Tensor, Tensor]:
    """The `count` largest numbers, descending, and their places (C,). `peak_B`: the runs' peaks, or any numbers that
    order the runs as those do."""
    if count * 2 >= len(peak_B):
        top = value_V.topk(count)
        return top.values, top.indices
    index_C = (peak_B.topk(count).indices[:, None] * RUN + torch.arange(RUN, device=value_V.device)).flatten()
    if len(value_V) % RUN:
        index_C = index_C[index_C < len(value_V)]
    top = value_V[index_C].topk(count)
    return top.values, index_C[top.indices]

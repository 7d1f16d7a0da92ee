"""Where the time of steps goes, and how much of the machine's arithmetic they use.

A Stopwatch hands all time between two laps to the phase that the lap names; `measures` turns what has gathered into
metrics, among them `train/mfu`: model FLOPs utilisation, the arithmetic that the model asks for (6 operations for each
parameter and token, and attention over half of the pairs; PaLM, https://arxiv.org/abs/2204.02311) divided by what the
matrix units did in the same time at their measured peak. Recomputation counts for nothing.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from kubeformer_runtime.trainer.precision import DTYPES, Precision

Phase = Literal["data", "compute", "reduce", "optimizer", "checkpoint", "evaluation"]
PROBE_SIZES = (1024, 2048)  # of square matrices; the best counts
PROBE_SECONDS = 0.05


class Stopwatch:
    """Seconds by phase since the last `measures`."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._last = now, now()
        self.seconds: dict[Phase, float] = {}

    def start(self) -> None:
        """Time before counts for nothing."""
        self._last = self._now()

    def lap(self, phase: Phase) -> None:
        """The time since the last lap was this phase's."""
        now = self._now()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def measures(self, steps: int, operations: float, peak: float | None) -> dict[str, float]:
        """Metrics of `steps` steps that asked for so many operations; then all begins anew.

        Milliseconds a step by phase, the share of data in per cent, and train/mfu where the peak is known.
        """
        times, self.seconds = self.seconds, {}
        busy = sum(seconds for phase, seconds in times.items() if phase != "evaluation")
        if not steps or busy <= 0:
            return {}
        found = {f"train/{phase}Milliseconds": 1000 * seconds / steps for phase, seconds in sorted(times.items())}
        found["train/dataWaitPercent"] = 100 * times.get("data", 0.0) / busy
        if peak:
            found["train/mfu"] = operations / busy / peak
        return found


def operations_per_token(parameters: int, layers: int, width: int, length: int, *, causal: bool = True) -> float:
    """Forward and backward of one token in a row of `length`; `parameters` are those of matrices that it meets."""
    pairs = length / 2 if causal else length
    return 6.0 * parameters + 12.0 * layers * width * pairs


def probe(precision: Precision, threads: int, now: Callable[[], float] = time.perf_counter) -> float:
    """Operations a second of a product of square matrices on this machine's CPUs: the best of some tries."""
    best = 0.0
    for size in PROBE_SIZES:
        a, b = (torch.randn(size, size).to(DTYPES[precision]) for _ in range(2))
        end = now() + PROBE_SECONDS / len(PROBE_SIZES)
        torch.mm(a, b)
        while True:
            begin = now()
            torch.mm(a, b)
            best = max(best, 2 * size**3 / (now() - begin))
            if now() > end:
                break
    return best


def peak(precision: Precision, device: torch.device, threads: int, cache: Path | None = None) -> float | None:
    """Measured once for each kind of processor, precision and number of threads, then kept in a file.

    None on GPUs, whose peak is on their data sheet and not ours to measure while training. A cache that cannot be
    written or read costs the probe again.
    """
    if device.type != "cpu":
        return None
    root = Path(os.environ.get("KUBEFORMER_CACHE") or Path.home() / ".cache" / "kubeformer")
    path = cache or root / "matmul-peak.json"
    key = f"{_processor()} {precision} {threads}"
    try:
        known = json.loads(path.read_text())
        if isinstance(found := known.get(key), float):
            return found
    except (OSError, ValueError, AttributeError):
        known = {}
    found = probe(precision, threads)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(known | {key: found}))
        os.replace(beside, path)
    except OSError:
        pass
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")

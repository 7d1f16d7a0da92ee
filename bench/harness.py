"""What every benchmark says beside its numbers: on which machine, with which versions, how far repeats were apart.

`emit` prints the one JSON line with which a benchmark ends.
"""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
PACKAGES = ("kubeformer", "torch", "transformers", "tokenizers", "scikit-learn", "numpy")


def machine() -> dict[str, object]:
    """Processor, its instruction sets that matter here, cores this process may use, memory, load."""
    info = dict[str, str]()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        info.setdefault(name.strip(), value.strip())
    kibibytes = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "processor": info.get("model name", platform.machine()),
        "flags": [flag for flag in FLAGS if flag in info.get("flags", "").split()],
        "cores": os.cpu_count(),
        "coresUsed": len(os.sched_getaffinity(0)),
        "memoryGiB": round(kibibytes / 2**20, 1),
        "loadAverage": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that decide."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def spread(values: Sequence[float]) -> dict[str, object]:
    """Mean, extremes, standard deviation and the values themselves, rounded for reading."""
    return {
        "mean": round(statistics.fmean(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "deviation": round(statistics.stdev(values), 3) if len(values) > 1 else None,
        "values": [round(value, 3) for value in values],
    }


def emit(name: str, result: Mapping[str, object]) -> None:
    """Prints the last line."""
    print(json.dumps({"benchmark": name, **result, "machine": machine(), "versions": versions()}), flush=True)

"""Every task's floor on held-out data, mean of three seeds: ROWS=translation,chat takes some (all: floor_*.py).

Each floor is a part of its own too (PART=floor_translation); a run of all parts measures it once, here. A floor that
breaks holds nothing, and the others still run.
"""

import importlib
from pathlib import Path

from bench.trainer.bars import Bar, Bench

PREFIX = "floor_"


def names() -> tuple[str, ...]:
    """What ROWS may name."""
    return tuple(sorted(path.stem.removeprefix(PREFIX) for path in Path(__file__).parent.glob(f"{PREFIX}*.py")))


def run(bench: Bench) -> list[Bar]:
    """Bars of the floors that ROWS names."""
    bars = list[Bar]()
    for name in names():
        if not bench.wants(name):
            continue
        module = importlib.import_module(f"bench.trainer.{PREFIX}{name}")
        print(f"\n{name}: {(module.__doc__ or '').partition(chr(10))[0]}", flush=True)
        inner = Bench(bench.work / name, bench.long)
        inner.work.mkdir(parents=True, exist_ok=True)
        try:
            bars += module.run(inner)
        except (Exception, SystemExit) as error:  # a job that ends otherwise than well is a SystemExit
            bars.append(Bar(f"{name}: the floor", 0.0, 0.0, None, why=f"{type(error).__name__}: {error}"[:300]))
        bench.figures[name] = inner.figures
    return bars

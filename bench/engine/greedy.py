"""Greedy equality with `transformers` in float32 on 200 prompts: bench/greedy.py, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

from bench.engine.bars import Bar

LOGPROB_LIMIT = 1e-4


def run(work: Path, long: bool) -> dict[str, object]:
    """200 prompts, or 1,000."""
    count = 1000 if long else 200
    command = [sys.executable, "-u", "-m", "bench.greedy", "--prompts", str(count), "--tokens", "32"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    last = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last = line
            if not line.startswith("{"):
                print(f"  {line}", end="", flush=True)
        code = process.wait()
    finally:
        process.kill()
    if not last.startswith("{"):
        raise RuntimeError(f"bench.greedy ended with code {code} and no result")
    found = json.loads(last)
    ways = found["ways"]
    equal = min(way["equal"] for way in ways) if found["allEqual"] else 0
    largest = max(way["largestLogprobDifference"] for way in ways)
    bars = [
        Bar("prompts whose greedy tokens equal transformers' in every mix", 200, 1000, equal),
        Bar("largest difference of log-probabilities", LOGPROB_LIMIT, 1e-5, largest, higher=False),
    ]
    (work / "greedy.json").write_text(last)
    return {"rows": {way["way"]: way for way in ways}, "bars": bars, "tokens": found["tokens"]}

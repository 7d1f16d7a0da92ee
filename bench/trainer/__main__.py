"""Our trainer against its peers and its bars: make bench NAME=trainer [PART=speed,chaos] [ROWS=fp32] [LONG=1]

Parts: every module of this package that has a function `run`; `--help` lists them. Where PART is left out, all of them,
the single floors (floor_*) as rows of the part floors.

Peers are installed into the cache the first time (minutes). ROWS limits a part to some of its rows; what then is not
measured gives no bar. RESUME=1 takes over parts that this commit has measured before. Tables for each part, then
every bar of issue 5 with its figure; the last line is JSON. Exit code 0 only if every must of the parts holds.
"""

import ast
import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from bench import harness
from bench.trainer.bars import Bar, Bench
from examples.smollm2 import cache


def parts() -> dict[str, str]:
    """Name of every part, with the first line of what it says of itself; nothing is imported for it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(arguments: list[str]) -> int:
    """Command line."""
    known = parts()
    if "--help" in arguments:
        print(__doc__, "\n".join(f"    {name:12} {line}" for name, line in known.items()), sep="\n")
        return 0
    asked = _words("PART") or tuple(name for name in known if not name.startswith("floor_"))
    if unknown := set(asked) - set(known):
        print(f"PART names {', '.join(sorted(unknown))}; known are {', '.join(known)}", file=sys.stderr)
        return 2
    rows, long = _words("ROWS"), bool(os.environ.get("LONG"))
    work = cache() / "bench" / "trainer" / _commit()
    begin = time.monotonic()
    have, resumed = set[str](), False  # rows that parts asked for; those of parts measured before are not known
    figures, bars, broken = dict[str, dict[str, object]](), list[Bar](), dict[str, str]()
    for part in asked:
        print(f"\n{part}: {known[part]}", flush=True)
        bench = Bench(work / part, long, rows)
        bench.work.mkdir(parents=True, exist_ok=True)
        kept = bench.work / f"result{''.join('-' + row for row in rows)}{'-long' if long else ''}.json"
        if os.environ.get("RESUME") and kept.is_file():
            before = json.loads(kept.read_text())
            figures[part], bars = before["figures"], bars + [Bar(**bar) for bar in before["bars"]]
            print("as measured before", flush=True)
            resumed = True
            continue
        try:
            found = importlib.import_module(f"bench.trainer.{part}").run(bench)
        except Exception as error:
            broken[part] = f"{type(error).__name__}: {error}"[:500]
            print(f"{part}: {broken[part]}", file=sys.stderr, flush=True)
            continue
        finally:
            have |= bench.known
        figures[part], bars = bench.figures, bars + found
        kept.write_text(json.dumps({"figures": bench.figures, "bars": [asdict(bar) for bar in found]}))
    if (strange := set(rows) - have) and not resumed:
        broken["ROWS"] = f"no part has {', '.join(sorted(strange))}; there are {', '.join(sorted(have)) or 'none'}"
    print(
        "\n" + "\n".join([*(bar.line() for bar in bars), *(f"MISSED  {part}: {why}" for part, why in broken.items())])
    )
    holds = not broken and bool(bars) and all(bar.holds for bar in bars)
    print(f"\n{sum(bar.holds for bar in bars)} of {len(bars)} musts hold, {sum(bar.reached for bar in bars)} reached")
    result = {
        "parts": figures,
        "broken": broken,
        "bars": [bar.document() for bar in bars],
        "long": long,
        "seconds": round(time.monotonic() - begin, 1),
        "pass": holds,
    }
    harness.emit("trainer", result)
    return 0 if holds else 1


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in (os.environ.get(name) or "").split(",") if word)


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "no-commit"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How long `make demo` takes, from nothing to a chat answer: `make bench NAME=demo`. The local cluster goes down first.

    (no PART)    caches warm, cluster down, no objects: binaries, images and packages are there, everything else is made
    PART=bare    a clone of HEAD with every cache empty: what a person waits for on a new machine, downloads included

Bars: warm 10 minutes (must), 5 (reach); bare 40 (must), 20 (reach). The output of the demo is shown as it comes, then
its steps as a table. Exit code 0 where the must holds and the demo ended well; the last line is JSON.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench import harness

HERE = Path(__file__).parent.parent
MUST_SECONDS = {"warm": 600.0, "bare": 2400.0}
REACH_SECONDS = {"warm": 300.0, "bare": 1200.0}
# Where tools keep what they downloaded or built. KUBEFORMER_CACHE is short because of Unix sockets' names.
CACHES = {
    "KUBEFORMER_CACHE": "k",
    "UV_CACHE_DIR": "uv",
    "GOCACHE": "go-build",
    "GOMODCACHE": "go-mod",
    "npm_config_cache": "npm",
    "PIP_CACHE_DIR": "pip",
    "XDG_CACHE_HOME": "xdg",
}
# Of localcluster ("  3.4 s  kubeformer-runtime: built") and of the demo's last table ("training  10 epochs  61.0 s").
_BEFORE = re.compile(r"^\s*([0-9.]+) s  (\S.*)$")
_TABLE = re.compile(r"^(\S.*?)  +.*?([0-9.]+) s$")


def run(directory: Path, environment: Mapping[str, str]) -> tuple[int, float, list[tuple[str, float]]]:
    """(exit code, seconds, steps with their seconds) of `make demo`."""
    steps: list[tuple[str, float]] = []
    begin = time.monotonic()
    command = ["make", "-C", str(directory), "demo"]
    process = subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if match := _BEFORE.match(line):
            steps.append((match[2].strip(), float(match[1])))
        elif match := _TABLE.match(line.rstrip()):
            steps.append((match[1], float(match[2])))
    return process.wait(), time.monotonic() - begin, steps


@contextmanager
def bare() -> Iterator[tuple[Path, dict[str, str]]]:
    """A clone of HEAD and an environment in which every cache is empty; both are gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="kb-"))
    try:
        clone = scratch / "r"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(HERE), str(clone)], check=True)
        environment = os.environ | {name: str(scratch / folder) for name, folder in CACHES.items()}
        try:
            yield clone, environment
        finally:
            down = [str(clone / ".venv/bin/python"), "-m", "localcluster", "down", "--purge"]
            if Path(down[0]).exists():
                subprocess.run(down, cwd=clone, env=environment, check=False)
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(scratch)], check=False)  # Go's module cache is read-only
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    """Command line."""
    part = os.environ.get("PART") or "warm"
    if part not in MUST_SECONDS:
        print(f"PART is {part!r}; it can be left out or `bare`", file=sys.stderr)
        return 2
    subprocess.run([sys.executable, "-m", "localcluster", "down", "--objects"], cwd=HERE, check=True)
    if part == "bare":
        with bare() as (directory, environment):
            code, seconds, steps = run(directory, environment)
    else:
        code, seconds, steps = run(HERE, os.environ)
    must, reach = MUST_SECONDS[part], REACH_SECONDS[part]
    holds = code == 0 and seconds <= must
    print(f"\n{'step':60}  seconds")
    for name, took in sorted(steps, key=lambda step: -step[1])[:25]:
        print(f"{name[:60]:60}  {took:7.1f}")
    print(f"\nmake demo, {part}: exit code {code} after {seconds:.0f} s; must {must:.0f}, reach {reach:.0f}")
    result = {
        "part": part,
        "exitCode": code,
        "seconds": round(seconds, 1),
        "mustSeconds": must,
        "reachSeconds": reach,
        "steps": dict(steps),
        "pass": holds,
    }
    harness.emit("demo", result)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())

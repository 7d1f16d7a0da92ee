"""Copies the launcher and the reporting helpers, which need Python's standard library alone, beside a custom image.

    python -m kubeformer_runtime.launcher.copy FOLDER

An init container does it; with FOLDER on PYTHONPATH, `python3 -m kubeformer_runtime.launcher` runs in any image.
"""

import shutil
import sys
from pathlib import Path

PARTS = ("__init__.py", "launcher", "integrations")


def copy(folder: Path) -> None:
    """The package `kubeformer_runtime` below `folder`, with no more than PARTS."""
    package, target = Path(__file__).resolve().parents[1], folder / "kubeformer_runtime"
    target.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if (package / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(package / part, target / part, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copyfile(package / part, target / part)


if __name__ == "__main__":
    copy(Path(sys.argv[1]))

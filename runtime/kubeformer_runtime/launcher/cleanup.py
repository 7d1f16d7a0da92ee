"""Cleanup: removes the checkpoints of a TrainingJob that was deleted. Standard library only.

    python -m kubeformer_runtime.launcher.cleanup ROOT [--unfinished MODEL] DIRECTORY...

With --unfinished, what an interrupted publication left beside the directory MODEL goes too, and MODEL stays.
Every DIRECTORY has to lie at least two levels below ROOT (the folder where claims are mounted: ROOT/CLAIM/...), so
that neither a claim's root nor anything outside of it can go. Parents left empty go too, up to the claim's root.
A directory that is not there is a success, because the clean-up may run twice. Exit codes: 0 done, 1 it could not
remove everything (the sentence says what), 2 it was called wrongly.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


class CleanupError(Exception):
    """What could not be removed, and why."""


def remove(root: Path, directory: Path) -> bool:
    """Remove `directory` and the parents it leaves empty. True if it was there.

    Raises CleanupError if it does not lie inside a claim below `root`, or cannot be removed.
    """
    root = root.resolve()
    place = directory.parent.resolve() / directory.name  # the last part is not followed: a link itself would go
    if directory.name in ("", "..") or root not in place.parents or len(place.relative_to(root).parts) < 2:
        raise CleanupError(f"{directory} does not lie inside a claim below {root}: nothing was removed")
    claim = root / place.relative_to(root).parts[0]
    try:
        there = place.is_symlink() or place.exists()
        if place.is_symlink() or place.is_file():
            place.unlink(missing_ok=True)
        elif there:
            shutil.rmtree(place)
    except FileNotFoundError:
        pass  # another clean-up was faster
    except OSError as error:
        raise CleanupError(f"{directory} could not be removed: {error}") from error
    for parent in place.parents:
        if parent == claim:
            break
        try:
            parent.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            break  # not empty
    return there


def unfinished(model: Path) -> list[Path]:
    """The temporary directories of interrupted publications of `model`, as `kubeformer_runtime.durable` names them."""
    if not model.parent.is_dir():
        return []
    endings = (".incomplete", ".replaced")
    found = (path for path in model.parent.iterdir() if path.name.startswith(f".{model.name}."))
    return sorted(path for path in found if path.name.endswith(endings))


def main(arguments: Sequence[str]) -> int:
    """Remove each directory; report each; go on after a failure."""
    parser = argparse.ArgumentParser(prog="python -m kubeformer_runtime.launcher.cleanup", description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("directories", type=Path, nargs="*", metavar="DIRECTORY")
    parser.add_argument("--unfinished", type=Path, action="append", default=[], metavar="MODEL")
    given = parser.parse_intermixed_args(arguments)
    failed = False
    for name in [*given.directories, *(path for model in given.unfinished for path in unfinished(model))]:
        try:
            print(f"{name}: {'removed' if remove(given.root, name) else 'was not there'}", flush=True)
        except CleanupError as error:
            failed = True
            print(error, file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

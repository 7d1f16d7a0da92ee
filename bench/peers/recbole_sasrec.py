"""RecBole's SASRec on MovieLens-100K, in an environment of its own: the peer of the recommendation task.

    directory = install()                    # once; MovieLens-100K comes inside RecBole's wheel and stays there
    rows = movielens(directory)              # (user, item, time), in time's order
    result = train(directory, work, seed=2020)    # an hour of two cores: to early stopping

The configuration is the documented one (https://recbole.io/docs/user_guide/model/sequential/sasrec.html): SASRec's own
defaults, cross-entropy (train_neg_sample_args None), RecBole's defaults for all else: Adam at 1e-3, batches of 2048, at
most 300 epochs, ended after 10 without a better validation MRR@10. Leave-one-out, ranked among all items. MovieLens'
clock gives many ratings of a user the same second; `movielens` breaks ties by the order of the file, and both sides get
its order as their time, so that both hold out the same items. MovieLens' terms forbid handing the data on.
"""

import csv
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.peers.install import ensure, shown, venv

VERSION = "1.2.1"
TORCH = "2.13.0"
DATASET = "movielens"


def install() -> Path:
    """The peer's directory; `venv` in it holds RecBole."""
    return ensure(f"recbole-{VERSION}", _build, 1.0)


def _build(directory: Path) -> None:
    needs = [f"torch=={TORCH}", "numpy<2", "pandas<2.3", "scipy<1.15", "tqdm", "colorlog==4.7.2", "colorama==0.4.4"]
    more = ["scikit-learn", "pyyaml", "tensorboard", "thop", "tabulate", "plotly", "texttable", "psutil"]
    # Without its dependencies: it wants an old Ray, for a search over settings that is not used here.
    venv(directory, sys.executable, [*needs, *more], ["--no-deps", f"recbole=={VERSION}"])


def movielens(directory: Path) -> list[tuple[str, str, int]]:
    """(user, item, time) of all 100,000 ratings; time counts from 0 in the order of the clock, then of the file."""
    found = next(directory.glob("venv/lib/python*/site-packages/recbole/dataset_example/ml-100k/ml-100k.inter"))
    with found.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    rows.sort(key=lambda row: float(row["timestamp:float"]))  # stable
    return [(row["user_id:token"], row["item_id:token"], number) for number, row in enumerate(rows)]


def train(directory: Path, work: Path, *, seed: int, threads: int) -> dict[str, object]:
    """Trains to early stopping and scores the test items. Raises SystemExit where it fails; its log is in `work`."""
    data = work / "data" / DATASET
    data.mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"{user}\t{item}\t{time}" for user, item, time in movielens(directory)]
    (data / f"{DATASET}.inter").write_text("\n".join(lines) + "\n")
    child = str(Path(__file__).with_name("recbole_child.py"))
    result = work / f"result-{seed}.json"
    command = [str(directory / "venv/bin/python"), child, str(work), DATASET, str(seed), str(result)]
    # Its checkpoints hold objects, which PyTorch of today refuses to load unless told that they are one's own.
    shown(
        command,
        work / f"train-{seed}.log",
        {"OMP_NUM_THREADS": str(threads), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "PYTHONPATH": "", "HOME": str(work)},
    )
    found: dict[str, object] = json.loads(result.read_text())
    held_out = found.pop("heldOut")  # MovieLens' own rows, which are not to be handed on
    assert isinstance(held_out, dict)
    return {**found, "heldOutDigest": digest_of_items(held_out)}


def digest_of_items(item_of_user: Mapping[str, str]) -> str:
    """Says whether two sides held out the same items, without naming them."""
    lines = "\n".join(f"{user} {item_of_user[user]}" for user in sorted(item_of_user))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


if __name__ == "__main__":
    here = Path(sys.argv[1])
    here.mkdir(parents=True, exist_ok=True)
    print(json.dumps(train(install(), here, seed=2020, threads=int(os.environ.get("OMP_NUM_THREADS", "2")))))

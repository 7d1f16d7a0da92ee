"""SASRec on MovieLens-100K beside RecBole's: NDCG@10 of each user's last item, ranked among all items.

Ours is an ordinary recommendation job, three seeds; what the epochs, width and dropout are was chosen on the validation
items. RecBole's SASRec in its documented configuration is trained to early stopping once (docs/results/recommendation-
*.json has what it scored, on which day and machine), and again with LONG=1, which takes hours of a core. Both get the
same rows in the same order, hold out the same items (checked), rank among all 1,682 items, and pass over none of those
that a user had before. MovieLens comes inside RecBole's package and stays in the cache.
"""

import json
import os
import statistics
from datetime import UTC, datetime
from pathlib import Path

from bench import harness
from bench.peers import recbole_sasrec
from bench.trainer.bars import Bar, Bench, table
from bench.trainer.jobs import finished, located
from kubeformer.contract.job import Architecture, Data, Model, Recommendation, Training

SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parent.parent.parent / "docs" / "results"
OF_POPULARITY = 1.2  # 20 % above it


def run(bench: Bench) -> list[Bar]:
    """Ours against popularity and the peer."""
    directory = recbole_sasrec.install()
    source = bench.work / "movielens.jsonl"
    rows = recbole_sasrec.movielens(directory)
    source.write_text("".join(json.dumps({"user": u, "item": i, "time": t}) + "\n" for u, i, t in rows))
    peer = _peer(bench, directory)
    ours = [_train(bench, source, seed) for seed in SEEDS]
    lines = [(f"ours, seed {seed}", *_shown(result)) for seed, result in zip(SEEDS, ours, strict=True)]
    ndcg = statistics.fmean(result["test/ndcg@10"] for result in ours)
    hits = statistics.fmean(result["test/hit-rate@10"] for result in ours)
    popular, popular_hits = ours[0]["test/popularity-ndcg@10"], ours[0]["test/popularity-hit-rate@10"]
    lines += [("ours, mean", ndcg, hits, None, None), ("popularity", popular, popular_hits, None, None)]
    theirs = None
    if peer is not None:
        test = peer["test"]
        assert isinstance(test, dict)
        theirs = float(test["ndcg@10"])
        lines.append(("RecBole's SASRec", theirs, float(test["hit@10"]), peer["epochs"], peer["secondsOfTraining"]))
        _same_items(peer, rows)
    print(table("MovieLens-100K, the last item of 943 users", ("", "NDCG@10", "HitRate@10", "epochs", "s"), lines))
    bench.figures.update(
        {
            "ndcg@10": harness.spread([result["test/ndcg@10"] for result in ours]),
            "hitRate@10": harness.spread([result["test/hit-rate@10"] for result in ours]),
            "popularityNDCG@10": round(popular, 4),
            "peer": peer,
        }
    )
    beside = "the peer has not been trained yet: LONG=1 does" if theirs is None else f"{ndcg:.4f} : {theirs:.4f}"
    return [
        Bar(
            "recommendation: NDCG@10 of RecBole's SASRec", 0.95, 1.0, None if not theirs else ndcg / theirs, why=beside
        ),
        Bar(
            "recommendation: NDCG@10 of popularity", OF_POPULARITY, OF_POPULARITY, ndcg / popular, why=f"{popular:.4f}"
        ),
    ]


def _train(bench: Bench, source: Path, seed: int) -> dict[str, float]:
    return finished(
        bench.work / f"seed-{seed}",
        task=Recommendation(max_length=50),
        model=Model(architecture=Architecture(layers=2, width=64, heads=2, dropout=0.5)),
        data=Data(source=located(source)),
        training=Training(
            epochs=24,
            batch_size=64,
            learning_rate=2e-3,
            weight_decay=0.0,
            objective_metric="validation/ndcg@10",
            objective_direction="Maximize",
            evaluate_every_epochs=2,
            seed=seed,
        ),
    )


def _shown(result: dict[str, float]) -> tuple[object, ...]:
    return result["test/ndcg@10"], result["test/hit-rate@10"], result["epochs"], result["seconds"]


def _peer(bench: Bench, directory: Path) -> dict[str, object] | None:
    """The committed result, or with LONG=1 one of today, which is written beside it."""
    if bench.long:
        threads = len(os.sched_getaffinity(0))
        found = recbole_sasrec.train(directory, bench.work / "recbole", seed=2020, threads=threads)
        document = {
            "command": "make bench NAME=trainer PART=recommendation LONG=1",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": harness.machine(),
            "RecBole SASRec": found,
        }
        RESULTS.joinpath(f"recommendation-{document['date']}.json").write_text(json.dumps(document, indent=1) + "\n")
        return found
    kept = sorted(RESULTS.glob("recommendation-*.json"))
    return json.loads(kept[-1].read_text())["RecBole SASRec"] if kept else None


def _same_items(peer: dict[str, object], rows: list[tuple[str, str, int]]) -> None:
    """Raises where the peer was asked for other items than ours."""
    last = {user: item for user, item, _ in rows}  # rows are in time's order
    digest = recbole_sasrec.digest_of_items(last)
    if peer["heldOutDigest"] != digest:
        raise ValueError("RecBole held out other items than ours; the two figures cannot be compared")

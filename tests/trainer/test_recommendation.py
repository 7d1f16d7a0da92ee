"""A recommender learns what comes next, is measured among all items, and answers with items new to the user."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from kubeformer.contract.job import Recommendation
from kubeformer.contract.names import ExitCode
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.recommender import Recommender, RecommenderConfig, load_recommender
from kubeformer_runtime.trainer.tasks.recommendation import gains, popularity_scores
from tests.unit.trainer.builders import job, train

ITEMS = tuple("abcdefghij")


def write_circles(path: Path, users: int = 40) -> None:
    """Users who go round a circle of ten items, each from another place: what comes next is certain."""
    draw, lines = random.Random(1), list[str]()
    for user in range(users):
        start = draw.randrange(len(ITEMS))
        for time in range(12):
            row = {"user": f"u{user}", "item": ITEMS[(start + time) % len(ITEMS)], "time": time}
            lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


def tiny(max_length: int = 6) -> Recommender:
    """A recommender that has learned nothing."""
    torch.manual_seed(0)
    return Recommender(RecommenderConfig(ITEMS, width=8, layers=2, heads=2, mlp_width=16, max_length=max_length)).eval()


def test_a_job_learns_a_circle_beats_popularity_and_publishes_what_answers(tmp_path: Path) -> None:
    write_circles(tmp_path / "rows.jsonl")
    settings = job(
        tmp_path, epochs=15, layers=1, width=32, activation="GELU", dropout=0.0, learning_rate=1e-2
    ).model_copy(update={"task": Recommendation(max_length=8)})
    training = settings.training.model_copy(update={"objective_metric": "validation/ndcg@10"})
    code, said = train(settings.model_copy(update={"training": training}))
    assert code == ExitCode.SUCCEEDED
    assert said.last.artifact is not None
    metrics = said.last.artifact.metrics
    assert metrics["test/ndcg@10"] > 0.95
    assert metrics["test/ndcg@10"] > 1.2 * metrics["test/popularity-ndcg@10"]
    recommender = load_recommender(settings.output.location.path)
    assert recommender.recommend(["c", "d", "e"], 3)[0][0] == "f"
    assert {"c", "d", "e"}.isdisjoint(name for name, _ in recommender.recommend(["c", "d", "e"], 99))


def test_no_place_sees_what_comes_after_it() -> None:
    network, first, other = tiny(), torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 9]])
    torch.testing.assert_close(network(first)[:, :3], network(other)[:, :3])
    assert not torch.equal(network(first)[:, 3], network(other)[:, 3])


def test_a_sequence_scores_the_same_beside_a_longer_one() -> None:
    network = tiny()
    alone = network.scores(network(torch.tensor([[3, 1]])), torch.tensor([2]))
    padded = torch.tensor([[3, 1, 0, 0, 0], [5, 4, 3, 2, 1]])
    beside = network.scores(network(padded), torch.tensor([2, 5]))[:1]
    torch.testing.assert_close(alone, beside)
    assert alone[0, 0] == -math.inf  # padding is never recommended


def test_ndcg_counts_the_place_and_hits_count_the_first_ten() -> None:
    """Items scored 20, 19, ..., 1: item 1 comes first, item 3 third, item 11 is beyond the ten."""
    score_NI = torch.arange(20, 0, -1.0).repeat(3, 1)
    ndcg, hits = gains(score_NI, torch.tensor([0, 2, 10]))
    assert float(ndcg) == pytest.approx(1 / math.log2(2) + 1 / math.log2(4))
    assert int(hits) == 2


def test_a_network_that_scores_all_alike_earns_nothing() -> None:
    assert [float(sum_) for sum_ in gains(torch.zeros(1, 20), torch.tensor([0]))] == [0.0, 0.0]


def test_popularity_ranks_by_how_often_an_item_was_taken_and_leaves_no_ties() -> None:
    scores_I = popularity_scores(np.array([5, 9, 5]))
    assert np.argsort(-scores_I).tolist() == [2, 1, 3, 0]
    assert len(set(scores_I.tolist())) == 4


def test_a_history_without_known_items_is_refused() -> None:
    with pytest.raises(ModelError, match="none of the 2 items"):
        tiny().recommend(["x", "y"], 3)


def test_only_the_last_items_of_a_long_history_count() -> None:
    network = tiny(max_length=2)
    assert network.recommend(["a", "b", "c"], 3, seen=True) == network.recommend(["j", "b", "c"], 3, seen=True)

"""recommendation: the next item of a user's sequence, by cross-entropy over all items. Network: model/recommender.py.

Held-out items are ranked among all items, those that the user had before included: NDCG@10 (1 for the first place,
1/log2(3) for the second, ..., 0 behind the tenth) and HitRate@10 (the share within the first ten). Items of equal score
share the worst of their places, so that a network that scores all alike earns nothing. `popularity` is what everyone
must beat: the same measures where items are ranked by how often they were taken in training.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kubeformer.contract.job import JobSettings, Recommendation, Training
from kubeformer_runtime.data.order import Share
from kubeformer_runtime.data.prepared import IGNORE, Float32, Int64, Prepared
from kubeformer_runtime.data.recipes.recommendation import (
    RecommendationBatch,
    RecommendationSplit,
    item_names,
    recommendation_batch,
)
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.recommender import Recommender, RecommenderConfig, load_recommender
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.networks import from_scratch
from kubeformer_runtime.trainer.tasks.base import BaseTask, Ranks, Tally, Totals

PLACES = 10


class RecommendationTask(BaseTask):
    """See Task."""

    metrics = ("loss", "accuracy")
    extra_metrics = ("ndcg@10", "hit-rate@10", "popularity-ndcg@10", "popularity-hit-rate@10")

    def __init__(self, train: RecommendationSplit, training: Training, max_length: int, popularity_I: Int64) -> None:
        super().__init__(train, training)
        self.train: RecommendationSplit = train
        self.row_tokens = max_length
        self.popularity_I = torch.from_numpy(popularity_scores(popularity_I))

    def weight(self, step: int) -> float:
        """Predicted items of the global batch."""
        return float(self.train.predicted_R[self.order.batch(step)].sum())

    def tokens(self, step: int) -> int:
        """See Task."""
        return int(self.train.lengths_R[self.order.batch(step)].sum())

    def batch(self, split: RecommendationSplit, share: Share) -> RecommendationBatch:
        """See Task."""
        return recommendation_batch(split, share.rows_B, share.weights_B)

    def tally(self, network: Recommender, batch: RecommendationBatch) -> Tally:
        """See Task; in evaluation the sums of NDCG and hits too."""
        device = next(network.parameters()).device
        target_BT = torch.from_numpy(batch.targets_BT).to(device)
        y_BTD = network(torch.from_numpy(batch.items_BT).to(device))
        counts_BT = target_BT != IGNORE
        target_N, logit_NI = target_BT[counts_BT], network.logits(y_BTD[counts_BT]).float()
        loss = F.cross_entropy(logit_NI, target_N, reduction="sum")
        correct = (logit_NI.detach().argmax(-1) == target_N).sum()
        more: tuple[Tensor, ...] = ()
        if not network.training:
            more = (*gains(logit_NI, target_N), *gains(self.popularity_I.to(device).expand_as(logit_NI), target_N))
        return Tally(loss, correct, float(len(target_N)), more)

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """Mean cross-entropy in nats, and the share of items that came out first."""
        return {"loss": loss / weight, "accuracy": correct / weight}

    def extra(self, network: Recommender, split: RecommendationSplit, totals: Totals, ranks: Ranks) -> dict[str, float]:
        """Means over users."""
        return {name: total / totals.weight for name, total in zip(self.extra_metrics, totals.more, strict=True)}


def popularity_scores(taken_I: Int64) -> Float32:
    """Scores of padding and all items: higher for items taken more often, of equals for the first; no two are equal."""
    order_I = np.argsort(-taken_I, kind="stable")
    scores_I = np.full(len(taken_I) + 1, -np.inf, dtype=np.float32)
    scores_I[order_I + 1] = -np.arange(len(order_I))
    return scores_I


def gains(score_NI: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of NDCG@10, number of hits within 10), over N predictions of one item each."""
    mine_N1 = score_NI.gather(1, target_N[:, None])
    place_N = (score_NI >= mine_N1).sum(1)  # from 1; counts the item itself
    hit_N = place_N <= PLACES
    return (hit_N / torch.log2(place_N + 1.0)).sum(), hit_N.sum()


def make_task(settings: JobSettings, prepared: Prepared) -> RecommendationTask:
    """See TaskModule."""
    assert isinstance(settings.task, Recommendation)
    assert isinstance(prepared.train, RecommendationSplit)
    popularity_I = np.asarray(prepared.facts["popularity"], dtype=np.int64)
    return RecommendationTask(prepared.train, settings.training, settings.task.max_length, popularity_I)


def make_network(settings: JobSettings, prepared: Prepared) -> Recommender:
    """See TaskModule."""
    task, items = settings.task, item_names(prepared)
    assert isinstance(task, Recommendation)
    if settings.model.base is not None:
        base = load_recommender(settings.model.base.path)
        if base.config.items != items:
            raise ModelError(
                f"{settings.model.base.uri} knows {len(base.config.items)} items, the data has {len(items)}, and they "
                "are not the same; train from scratch"
            )
        if base.config.max_length != task.max_length:
            raise InvalidJob(
                f"spec.task.recommendation.maxLength is {task.max_length}, but {settings.model.base.uri} was made for "
                f"sequences of {base.config.max_length}"
            )
        return base
    architecture = from_scratch(settings)
    if architecture.activation != "GELU":
        raise InvalidJob(
            f"spec.model.architecture.activation is {architecture.activation}; a recommendation's MLP has GELU: leave "
            "the field out"
        )
    config = RecommenderConfig(
        items=items,
        width=architecture.width,
        layers=architecture.layers,
        heads=architecture.heads,
        mlp_width=architecture.mlp_width or 4 * architecture.width,
        max_length=task.max_length,
        dropout=architecture.dropout,
    )
    try:
        return Recommender(config)
    except ModelError as error:
        raise InvalidJob(f"spec.model.architecture: {error}") from None

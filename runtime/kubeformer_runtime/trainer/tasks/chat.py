"""chat: cross-entropy of what the assistant says, over packed conversations that do not see each other."""

from dataclasses import replace

from kubeformer.contract.job import Chat, JobSettings, Training
from kubeformer_runtime.data.order import Share
from kubeformer_runtime.data.prepared import Prepared
from kubeformer_runtime.data.recipes.packed import PackedBatch, PackedSplit, packed_batch
from kubeformer_runtime.model.llama import Llama
from kubeformer_runtime.trainer.networks import decoder
from kubeformer_runtime.trainer.tasks.base import BaseTask, Network, Tally
from kubeformer_runtime.trainer.tasks.language_model import next_token_measures, next_token_tally


class ChatTask(BaseTask):
    """See Task."""

    metrics = ("loss", "perplexity", "accuracy")

    def __init__(self, train: PackedSplit, training: Training) -> None:
        super().__init__(train, training)
        self.train: PackedSplit = train
        self.row_tokens = train.inputs_RS.shape[1]

    def weight(self, step: int) -> float:
        """Tokens of the global batch that the assistant says."""
        return float(self.train.predicted_R[self.order.batch(step)].sum())

    def tokens(self, step: int) -> int:
        """See Task."""
        return int(self.train.read_R[self.order.batch(step)].sum())

    def batch(self, split: PackedSplit, share: Share) -> PackedBatch:
        """See Task."""
        return packed_batch(split, share.rows_B, share.weights_B)

    def tally(self, network: Network, batch: PackedBatch) -> Tally:
        """See Task."""
        return next_token_tally(network, batch.inputs_BS, batch.targets_BS, batch.documents_BS)

    def measures(self, loss: float, correct: float, weight: float) -> dict[str, float]:
        """As of a language model, over the assistant's tokens."""
        return next_token_measures(loss, correct, weight)


def make_task(settings: JobSettings, prepared: Prepared) -> ChatTask:
    """See TaskModule."""
    assert isinstance(prepared.train, PackedSplit)
    return ChatTask(prepared.train, settings.training)


def make_network(settings: JobSettings, prepared: Prepared) -> Network:
    """See TaskModule. Whoever serves the model ends an answer where those of the data end."""
    assert isinstance(settings.task, Chat)
    network = decoder(settings, prepared, settings.task.sequence_length, "chat")
    assert isinstance(network, Llama)
    ends = (*network.config.eos_token_ids, *prepared.facts["ends"])
    network.config = replace(network.config, eos_token_ids=tuple(dict.fromkeys(ends)))
    return network

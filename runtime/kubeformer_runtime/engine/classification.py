"""ClassificationEngine: a trained classifier behind a PoolingEngine (pooling.py): token ids in, probabilities out."""

from collections.abc import Sequence
from typing import TypeAlias

import torch

from kubeformer_runtime.engine.pooling import PoolingEngine, PoolingInput
from kubeformer_runtime.model.classifier import Classifier
from kubeformer_runtime.model.decoder_classifier import DecoderClassifier
from kubeformer_runtime.model.modern_bert import ModernBert

AnyClassifier: TypeAlias = ModernBert | DecoderClassifier | Classifier


class ClassificationEngine:
    """Start it inside a running event loop; `close` ends the thread."""

    def __init__(
        self, model: AnyClassifier, *, max_length: int | None = None, max_rows: int = 64, max_tokens: int = 8192
    ) -> None:
        """Texts are cut to `max_length` tokens, which is at most the model's own. Batches: see PoolingEngine."""
        self.model = model.eval()
        self.labels = model.config.labels
        self.max_length = min(max_length or model.config.max_length, model.config.max_length)
        device = next(model.parameters()).device

        def compute(items: Sequence[PoolingInput]) -> list[list[float]]:
            return probabilities(model, [item.tokens for item in items], device)

        self._engine = PoolingEngine(compute, max_rows=max_rows, max_tokens=max_tokens)

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return self._engine.alive

    @property
    def num_requests(self) -> int:
        """Texts that wait for their answer."""
        return self._engine.num_requests

    def start(self) -> None:
        """Begin to work."""
        self._engine.start()

    async def close(self) -> None:
        """Finish what waits and stop the thread."""
        await self._engine.close()

    async def classify(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Probabilities of every class for each text; longer texts are cut to the length the model was trained for.

        Raises:
            EngineDeadError: the engine broke, now or earlier.
        """
        return await self._engine.compute([PoolingInput(tokens[: self.max_length]) for tokens in texts])


@torch.inference_mode()
def probabilities(model: AnyClassifier, texts: Sequence[Sequence[int]], device: torch.device) -> list[list[float]]:
    """One row of probabilities a text, from one padded batch."""
    longest = max(1, *(len(tokens) for tokens in texts))
    padding = model.config.pad_token_id
    token_BT = torch.tensor([[*tokens, *[padding] * (longest - len(tokens))] for tokens in texts], device=device)
    length_B = torch.tensor([len(tokens) for tokens in texts], device=device)
    logit_BC = model(token_BT, length_B)
    answer: list[list[float]] = torch.softmax(logit_BC.float(), dim=-1).tolist()
    return answer

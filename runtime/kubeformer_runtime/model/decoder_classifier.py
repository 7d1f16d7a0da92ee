"""A language model that classifies: its body reads the text, and the last token's vector is what classes are read off.

    model = DecoderClassifier(DecoderClassifierConfig(llama_config, labels)); logit_BC = model(token_BT, length_B)

The layout is Hugging Face's (LlamaForSequenceClassification, Qwen2..., Qwen3..., Mistral..., GPT2...): the language
model's, with `score` in place of `lm_head`. Since a token sees all before it, the last one has seen the text; which
one is last is transformers' rule: the last that is not <pad>, so an <eos> that also serves as <pad> is passed over.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from kubeformer_runtime.model.decoder_classifier_config import DecoderClassifierConfig
from kubeformer_runtime.model.decoder_config import LlamaConfig
from kubeformer_runtime.model.llama import LlamaBody

SCORE = "score.weight"


class DecoderClassifier(nn.Module):
    """Token ids and lengths in, one logit a class out. `dropout` is used in training only, not part of the model."""

    def __init__(self, config: DecoderClassifierConfig, dropout: float = 0.0) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.model = LlamaBody(config.decoder, dropout)
        self.score = nn.Linear(config.width, len(config.labels), bias=False)
        nn.init.normal_(self.score.weight, 0.0, config.decoder.initializer_range)

    def forward(self, token_BT: Tensor, length_B: Tensor) -> Tensor:
        """Classifies a padded batch.

        Args:
            token_BT: token ids; what lies at or after a row's length is padding and may be any token.
            length_B: how many tokens of each row count. A row without any is judged by its first place.

        Returns:
            Logits of shape (B, C).
        """
        place_T = torch.arange(token_BT.shape[1], device=token_BT.device)
        told_BT = (place_T < length_B[:, None]) & (token_BT != self.config.pad_token_id)
        last_B = (place_T * told_BT).argmax(dim=1)
        x_BTD = self.model(token_BT)
        logit_BC: Tensor = self.score(x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), last_B])
        return logit_BC


def with_head(
    decoder: LlamaConfig, weights: Mapping[str, Tensor], labels: tuple[str, ...], pad_token_id: int, dropout: float
) -> DecoderClassifier:
    """A classifier of these labels over a language model's body (`weights` under our names). The head begins anew."""
    pad = pad_token_id if decoder.pad_token_id is None else decoder.pad_token_id
    model = DecoderClassifier(DecoderClassifierConfig(replace(decoder, pad_token_id=pad), labels), dropout)
    body = {name: tensor for name, tensor in weights.items() if name.startswith("model.")}
    model.load_state_dict(body, strict=False)
    return model.eval()

"""Seq2SeqModel: an encoder-decoder's directory, warm: how texts become the tokens of sources, and targets texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.data.clean import Normalize, clean_text
from kubeformer_runtime.engine.sampling_params import ParameterError
from kubeformer_runtime.engine.seq2seq import Source, Written, write_batch
from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.seq2seq import Seq2Seq
from kubeformer_runtime.model.weights import LoadedModel


@dataclass(frozen=True, slots=True)
class Seq2SeqModel:
    """An encoder-decoder, warm."""

    model: Seq2Seq
    tokenizer: EngineTokenizer
    normalize: Normalize  # how texts were cleaned before training, and so have to be before answering
    max_model_len: int  # of a source
    max_rows: int  # hypotheses that are written at once
    usual_tokens: int | None  # of a target, where a request does not say; None: as many as can be
    dtype: torch.dtype
    digest: str | None

    @property
    def most_tokens(self) -> int:
        """Tokens of a target at most, <eos> among them: what it begins with takes a position, too."""
        return max(1, min(self.max_model_len, self.model.config.max_length - 1))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Sources as in training: cleaned, and framed by the tokenizer's <bos> and <eos>.

        Raises:
            ParameterError: nothing is left of a text, or it is too long.
        """
        cleaned = [clean_text(text, self.normalize) for text in texts]
        if not all(cleaned):
            raise ParameterError("prompt", "prompt has a text in which there is nothing to read; give a source text.")
        framed = self.tokenizer.encode_framed(cleaned, 1 << 30)  # cut nothing off: it would be missing in the answer
        for tokens in framed:
            if not tokens:
                raise ParameterError("prompt", "prompt has a text without tokens; give at least one.")
            if len(tokens) > self.max_model_len:
                raise ParameterError(
                    "prompt",
                    f"prompt has a text of {len(tokens)} tokens, but this model reads at most {self.max_model_len}; "
                    "shorten it or send it in parts.",
                )
        return framed

    def decode(self, written: Written) -> str:
        """The text of a target."""
        return self.tokenizer.decode(written.tokens)


def load_seq2seq(
    settings: ServerSettings, loaded: LoadedModel, tokenizer: EngineTokenizer, normalize: Normalize, digest: str | None
) -> Seq2SeqModel:
    """Check and warm up. Raises ModelError."""
    _refuse_what_has_no_effect(settings)
    parameter = next(iter(loaded.weights.values()))
    model = loaded.module()
    if not isinstance(model, Seq2Seq):
        raise TypeError("an encoder-decoder was expected")
    model.to(device=parameter.device, dtype=parameter.dtype)
    most = model.config.max_length
    if settings.max_model_length is not None and settings.max_model_length > most:
        raise ModelError(
            f"engine.maxModelLength is {settings.max_model_length}, but this model was made for {most} tokens"
        )
    write_batch(model.eval(), [Source((0,), 1), Source((0, 0), 1)], lambda _, __: None, lambda _: False)
    return Seq2SeqModel(
        model=model,
        tokenizer=tokenizer,
        normalize=normalize,
        max_model_len=settings.max_model_length or most,
        max_rows=1 if settings.numerics == "Reproducible" else settings.max_num_seqs,
        usual_tokens=settings.sampling.max_tokens,
        dtype=parameter.dtype,
        digest=digest,
    )


def _refuse_what_has_no_effect(settings: ServerSettings) -> None:
    """Raises ModelError for the first setting that has no meaning for an encoder-decoder."""
    sampling = settings.sampling
    for field, given, usual in (
        ("engine.quantization", settings.quantization, ("None",)),
        ("engine.speculativeTokens", settings.speculative_tokens, (0,)),
        ("adapters", settings.adapters, ([],)),
        ("sampling.temperature", sampling.temperature, (None, 0)),
        ("sampling.topP", sampling.top_p, (None, 1)),
        ("sampling.topK", sampling.top_k, (None, 0, -1)),
        ("sampling.minP", sampling.min_p, (None, 0)),
        ("sampling.repetitionPenalty", sampling.repetition_penalty, (None, 1)),
        ("sampling.seed", sampling.seed, (None,)),
    ):
        if given not in usual:
            raise ModelError(
                f"{field} is for decoders, and this is an encoder-decoder, which writes greedily or with beams; "
                "leave it out"
            )

"""SamplingParams: how one request wants its tokens chosen; vLLM's names, vLLM's meaning. Pure.

`validate` gives the first thing that is wrong as a ParameterError, which names the field, what was given
and what would be right; the server turns it into a 400.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

MAX_LOGPROBS = 20
MAX_CHOICES = 64
MAX_BEAMS = 16
MAX_BAD_WORDS = 2048  # token sequences
GREEDY_BELOW = 1e-5  # a temperature below this one means greedy, as in vLLM


class ParameterError(ValueError):
    """A request's parameter that cannot work; `field` is the name that the client used."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


StructuredKind = Literal["json", "regex", "choice", "grammar", "json_object"]


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """The form that an answer must have; structured.py compiles it. Equal forms are compiled once."""

    kind: StructuredKind
    value: str | tuple[str, ...] = ""  # JSON schema as JSON, regex, Lark grammar, or the choices; json_object: nothing

    @classmethod
    def of_schema(cls, schema: object) -> "StructuredOutput":
        """From a JSON schema, parsed or as text."""
        return cls("json", schema if isinstance(schema, str) else json.dumps(schema, separators=(",", ":")))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """One request's wishes. The defaults change nothing: plain sampling from the model's distribution."""

    n: int = 1
    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: all tokens
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None  # None: the engine draws one
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None  # how many alternatives beside the chosen token; None: none at all
    prompt_logprobs: int | None = None  # the same for each token of the prompt but the first
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that never come
    allowed_token_ids: tuple[int, ...] | None = None  # None: all
    structured: StructuredOutput | None = None
    use_beam_search: bool = False  # the n likeliest answers instead of n samples; see beam.py
    length_penalty: float = 1.0  # of beam search: above 0 favours long answers

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def penalised(self) -> bool:
        """Whether tokens that were already there change the distribution."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    def validate(self, vocab_size: int) -> None:
        """Raise ParameterError for the first value outside its range."""
        _between("n", self.n, 1, MAX_CHOICES)
        _at_least("max_tokens", self.max_tokens, 1)
        _between("min_tokens", self.min_tokens, 0, self.max_tokens)
        _between("temperature", self.temperature, 0.0, 100.0)
        if not 0.0 < self.top_p <= 1.0:
            raise ParameterError("top_p", f"top_p is {self.top_p}; give a number above 0 and at most 1.")
        _at_least("top_k", self.top_k, -1)
        _between("min_p", self.min_p, 0.0, 1.0)
        _between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if not (self.repetition_penalty > 0.0 and math.isfinite(self.repetition_penalty)):
            raise ParameterError(
                "repetition_penalty", f"repetition_penalty is {self.repetition_penalty}; give a number above 0."
            )
        if any(not stop for stop in self.stop):
            raise ParameterError("stop", "stop holds an empty string; give strings of at least one character.")
        for token in self.stop_token_ids:
            _token("stop_token_ids", token, vocab_size)
        if self.logprobs is not None:
            _between("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _between("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        for token, bias in self.logit_bias.items():
            _token("logit_bias", token, vocab_size)
            if not -100.0 <= bias <= 100.0:
                raise ParameterError(
                    "logit_bias", f"logit_bias of token {token} is {bias}; give a number between -100 and 100."
                )
        if len(self.bad_words) > MAX_BAD_WORDS:
            raise ParameterError(
                "bad_words", f"bad_words are {len(self.bad_words)} token sequences; give at most {MAX_BAD_WORDS}."
            )
        for word in self.bad_words:
            if not word:
                raise ParameterError("bad_words", "bad_words holds a word without tokens; give words with text.")
            for token in word:
                _token("bad_words", token, vocab_size)
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise ParameterError("allowed_token_ids", "allowed_token_ids is empty; give at least one token.")
            for token in self.allowed_token_ids:
                _token("allowed_token_ids", token, vocab_size)
        _between("length_penalty", self.length_penalty, -10.0, 10.0)
        if self.use_beam_search and self.n > MAX_BEAMS:
            raise ParameterError("n", f"n is {self.n}; beam search finds at most {MAX_BEAMS} answers.")


def _between(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also true for NaN
        raise ParameterError(field, f"{field} is {value}; give a number between {low:g} and {high:g}.")


def _at_least(field: str, value: int, low: int) -> None:
    if value < low:
        raise ParameterError(field, f"{field} is {value}; give a number of at least {low}.")


def _token(field: str, token: int, vocab_size: int) -> None:
    if not 0 <= token < vocab_size:
        raise ParameterError(field, f"{field} names token {token}; the vocabulary has 0 to {vocab_size - 1}.")

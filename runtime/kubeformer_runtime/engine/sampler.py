"""Sampler: from logits to the next token of each sequence, and its log-probabilities.

The order of steps is vLLM's: logit_bias, penalties, min_tokens, temperature, min_p, top_k, top_p. Greedy takes the
largest logit after the first three. Log-probabilities are those of the model, before any of it.

Every sequence has its own random numbers: the one for its t-th token is a function of its seed and t alone. What
else runs in the batch, how prompts are cut into chunks and whether the sequence was preempted play no part.
"""

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kubeformer_runtime.engine.sampling_params import SamplingParams

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_CANDIDATES = 512  # how many of the likeliest tokens top_p looks at before it sorts the whole vocabulary


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token and the logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """The chosen token; with logprobs asked for, its own and the likeliest alternatives, best first."""

    token: int
    logprob: float | None = None
    top: tuple[Logprob, ...] = ()


@dataclass(slots=True)
class SamplerState:
    """What the sampler knows of one sequence."""

    params: SamplingParams
    seed: int
    end_tokens: tuple[int, ...]  # kept away until min_tokens are there
    prompt: SequenceOf[int]
    position: int = 0  # tokens chosen so far
    _seen_V: Tensor | None = field(default=None, repr=False)  # whether prompt or answer has the token
    _count_V: Tensor | None = field(default=None, repr=False)  # how often the answer has it

    def record(self, token: int) -> None:
        """The token was chosen: it counts from now on."""
        self.position += 1
        if self._seen_V is not None and self._count_V is not None:
            self._seen_V[token] = True
            self._count_V[token] += 1

    def shape(self, logit_V: Tensor) -> Tensor:
        """Logits after bias, penalties and min_tokens; a copy where anything changes."""
        params = self.params
        early = self.position < params.min_tokens
        if not (params.penalised or params.logit_bias or early):
            return logit_V
        logit_V = logit_V.clone()
        for token, bias in params.logit_bias.items():
            logit_V[token] += bias
        if params.penalised:
            self._penalise(logit_V)
        if early and self.end_tokens:
            logit_V[list(self.end_tokens)] = -math.inf
        return logit_V

    def _penalise(self, logit_V: Tensor) -> None:
        if self._seen_V is None or self._count_V is None:
            self._seen_V = torch.zeros(len(logit_V), dtype=torch.bool, device=logit_V.device)
            self._seen_V[torch.tensor(list(self.prompt), device=logit_V.device)] = True
            self._count_V = torch.zeros_like(logit_V)
        params = self.params
        if params.repetition_penalty != 1.0:
            weaker_V = torch.where(
                logit_V > 0, logit_V / params.repetition_penalty, logit_V * params.repetition_penalty
            )
            logit_V.copy_(torch.where(self._seen_V, weaker_V, logit_V))
        logit_V -= params.frequency_penalty * self._count_V
        logit_V -= params.presence_penalty * (self._count_V > 0)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone (SplitMix64, https://doi.org/10.1145/2660193.2660195)."""
    state = (_mix(seed & _MASK64) + (position + 1) * _GOLDEN) & _MASK64
    return (_mix(state) >> 11) * 2.0**-53


def seed_of_choice(seed: int, index: int) -> int:
    """The seed of the index-th of n choices: the first keeps the request's own, so that n only adds to n = 1."""
    return seed if index == 0 else _mix((seed ^ (index * _GOLDEN)) & _MASK64)


def _mix(state: int) -> int:
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state ^ (state >> 31)


@torch.inference_mode()
def sample(logit_SV: Tensor, states: SequenceOf[SamplerState]) -> list[Sampled]:
    """Choose one token for each row and record it in the row's state."""
    if not states:
        return []
    best_S: list[int] = logit_SV.argmax(dim=-1).tolist()
    chosen: list[Sampled] = []
    for row, state in enumerate(states):
        logit_V = logit_SV[row]
        shaped_V = state.shape(logit_V)
        if not state.params.greedy:
            token = choose(shaped_V, state.params, uniform(state.seed, state.position))
        elif shaped_V is logit_V:
            token = best_S[row]
        else:
            token = int(shaped_V.argmax())
        state.record(token)
        chosen.append(Sampled(token) if state.params.logprobs is None else _with_logprobs(logit_V, token, state))
    return chosen


def choose(logit_V: Tensor, params: SamplingParams, number: float) -> int:
    """Token whose slice of the cumulative distribution holds `number`, after temperature and the three filters."""
    logit_V = logit_V / params.temperature
    if params.min_p > 0.0:
        logit_V = logit_V.masked_fill(logit_V < logit_V.max() + math.log(params.min_p), -math.inf)
    token_C: Tensor | None = None  # None: every token, in the vocabulary's order
    if 0 < params.top_k < len(logit_V):
        logit_V, token_C = logit_V.topk(params.top_k)
    probability_C = torch.softmax(logit_V.double(), dim=-1)
    if params.top_p < 1.0:
        if token_C is None:
            probability_C, token_C = _likeliest(probability_C, params.top_p)
        before_C = probability_C.cumsum(0) - probability_C
        probability_C = probability_C[before_C < params.top_p]  # never empty: the first has nothing before it
    cumulative_C = probability_C.cumsum(0)
    target = number * float(cumulative_C[-1])
    place = int(torch.searchsorted(cumulative_C, torch.tensor(target, dtype=torch.float64), right=True))
    if place >= len(cumulative_C) or not float(probability_C[place]):  # rounding at the very end
        place = int(probability_C.nonzero()[-1])
    return place if token_C is None else int(token_C[place])


def _likeliest(probability_V: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens, sorted, enough of them to hold `share`; the whole vocabulary only where it must be."""
    if len(probability_V) > _CANDIDATES:
        top = probability_V.topk(_CANDIDATES)
        if float(top.values.sum()) >= share:
            return top.values, top.indices
    ordered = probability_V.sort(descending=True, stable=True)
    return ordered.values, ordered.indices


def _with_logprobs(logit_V: Tensor, token: int, state: SamplerState) -> Sampled:
    total = logit_V.logsumexp(0)
    top: tuple[Logprob, ...] = ()
    if state.params.logprobs:
        best = logit_V.topk(min(state.params.logprobs, len(logit_V)))
        values: list[float] = (best.values - total).tolist()
        top = tuple(Logprob(t, value) for t, value in zip(best.indices.tolist(), values, strict=True))
    return Sampled(token, float(logit_V[token] - total), top)

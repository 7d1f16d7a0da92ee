"""Sampler: from logits to the next token of each sequence, and its log-probabilities.

The order of steps is vLLM's: logit_bias, penalties, what may not come (structure, allowed_token_ids, bad_words,
min_tokens), temperature, min_p, top_k, top_p. Greedy takes the largest logit after the first three.
Log-probabilities are those of the model, before any of it.

Every sequence has its own random numbers: the one for its t-th token is a function of its seed and t alone. What
else runs in the batch, how prompts are cut into chunks and whether the sequence was preempted play no part.

Shapes:
    S sequences    V vocabulary    B runs of 128 neighbouring tokens    C one such run, or candidates, best first
"""

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kubeformer_runtime.engine.largest import RUN, argmax, descending, gather_run, largest, run_peaks, run_sums
from kubeformer_runtime.engine.sampling_params import SamplingParams

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_LOG2E = math.log2(math.e)
_COOLEST = 0.01  # a lower temperature that is not greedy counts as this one, as in vLLM


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token and the logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token; with logprobs asked for, its own and the likeliest, best first; of prompts its rank (1: likeliest)."""

    token: int
    logprob: float | None = None
    top: tuple[Logprob, ...] = ()
    rank: int | None = None


class Structure(Protocol):
    """Which tokens may come next, for an answer that must have a form; see structured.py."""

    @property
    def end_tokens(self) -> SequenceOf[int]:
        """Tokens that end the answer where the form allows it."""
        ...

    def allowed_V(self, size: int, device: torch.device) -> Tensor:
        """Bool (V,): True where a token may come; never all False."""
        ...

    def accept(self, token: int) -> None:
        """The token was chosen."""
        ...


@dataclass(slots=True)
class SamplerState:
    """What the sampler knows of one sequence."""

    params: SamplingParams
    seed: int
    end_tokens: tuple[int, ...]  # kept away until min_tokens are there
    prompt: SequenceOf[int]
    structure: Structure | None = None
    output: list[int] = field(default_factory=list)  # tokens chosen so far
    _seen: "_Seen | None" = field(default=None, repr=False)
    _allowed_V: Tensor | None = field(default=None, repr=False)  # allowed_token_ids

    @property
    def position(self) -> int:
        """How many tokens were chosen."""
        return len(self.output)

    def record(self, token: int) -> None:
        """The token was chosen: it counts from now on."""
        self.output.append(token)
        if self._seen is not None:
            self._seen.add(token)
        if self.structure is not None:
            self.structure.accept(token)

    def shape(self, logit_V: Tensor) -> Tensor:
        """Logits after bias, penalties and all that forbids tokens; a copy where anything changes.

        Where two rules together would leave no token, the later one gives way; the answer's structure comes first.
        """
        params = self.params
        masks = self._forbidden(logit_V)
        if not (params.penalised or params.logit_bias or masks):
            return logit_V
        logit_V = logit_V.clone()
        if params.logit_bias:
            token_C = torch.tensor(list(params.logit_bias), device=logit_V.device)
            logit_V[token_C] += torch.tensor(list(params.logit_bias.values()), device=logit_V.device)
        if params.penalised:
            self._penalise(logit_V)
        for forbidden in masks:
            if forbidden.dtype is torch.bool:
                left_V = logit_V.masked_fill(forbidden, -math.inf)
            else:
                left_V = logit_V.index_fill(0, forbidden, -math.inf)
            if float(left_V.amax()) > -math.inf:
                logit_V = left_V
        return logit_V

    def _forbidden(self, logit_V: Tensor) -> list[Tensor]:
        """Tokens that may not come, rule by rule, as indices or as bool (V,); the strongest rule first."""
        params, device = self.params, logit_V.device
        masks: list[Tensor] = []
        if self.structure is not None:
            masks.append(~self.structure.allowed_V(len(logit_V), device))
        if params.allowed_token_ids is not None:
            if self._allowed_V is None:
                self._allowed_V = torch.zeros(len(logit_V), dtype=torch.bool, device=device)
                self._allowed_V[torch.tensor(params.allowed_token_ids, device=device)] = True
            masks.append(~self._allowed_V)
        bad = [word[-1] for word in params.bad_words if self._would_complete(word)]
        ends = list(self.end_tokens) if self.position < params.min_tokens else []
        if self.structure is not None and params.ignore_eos:
            ends.extend(self.structure.end_tokens)
        masks.extend(torch.tensor(tokens, device=device) for tokens in (bad, ends) if tokens)
        return masks

    def _would_complete(self, word: SequenceOf[int]) -> bool:
        """Whether the answer ends in all of `word` but its last token."""
        start = len(word) - 1
        return not start or self.output[-start:] == list(word[:-1])

    def _penalise(self, logit_V: Tensor) -> None:
        if self._seen is None:
            self._seen = _Seen(self.prompt, self.output, logit_V.device)
        params, seen = self.params, self._seen
        value_C = logit_V[seen.token_C]
        if params.repetition_penalty != 1.0:
            penalty = params.repetition_penalty
            value_C = torch.where(value_C > 0, value_C / penalty, value_C * penalty)
        value_C -= params.frequency_penalty * seen.count_C
        value_C -= params.presence_penalty * (seen.count_C > 0)
        logit_V[seen.token_C] = value_C


class _Seen:
    """Which tokens prompt and answer have, each once, and how often the answer has each."""

    def __init__(self, prompt: SequenceOf[int], output: SequenceOf[int], device: torch.device) -> None:
        tokens = list(dict.fromkeys(prompt))
        self._place = {token: place for place, token in enumerate(tokens)}
        self.token_C = torch.tensor(tokens, dtype=torch.int64, device=device)
        self.count_C = torch.zeros(len(tokens), device=device)
        for token in output:
            self.add(token)

    def add(self, token: int) -> None:
        """The answer has one more of it."""
        place = self._place.get(token)
        if place is not None:
            self.count_C[place] += 1
            return
        self._place[token] = len(self._place)
        self.token_C = torch.cat([self.token_C, self.token_C.new_tensor([token])])
        self.count_C = torch.cat([self.count_C, self.count_C.new_ones(1)])


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
    shaped_SV = logit_SV
    for row, state in enumerate(states):
        logit_V = logit_SV[row]
        if (shaped_V := state.shape(logit_V)) is not logit_V:
            shaped_SV = logit_SV.clone() if shaped_SV is logit_SV else shaped_SV
            shaped_SV[row] = shaped_V
    drawn = [row for row, state in enumerate(states) if not state.params.greedy]
    tokens = argmax(shaped_SV) if len(drawn) < len(states) else [0] * len(states)
    if drawn:
        rows_SV = shaped_SV if len(drawn) == len(states) else shaped_SV[drawn]
        numbers = [uniform(states[row].seed, states[row].position) for row in drawn]
        for row, token in zip(drawn, draw(rows_SV, [states[row].params for row in drawn], numbers), strict=True):
            tokens[row] = token
    chosen = [Sampled(token) for token in tokens]
    for state, token in zip(states, tokens, strict=True):
        state.record(token)
    asked = [(row, state.params.logprobs) for row, state in enumerate(states) if state.params.logprobs is not None]
    if asked:
        rows = [row for row, _ in asked]
        rows_SV = logit_SV if len(rows) == len(states) else logit_SV[rows]
        found = with_logprobs(rows_SV, [tokens[row] for row in rows], [wanted for _, wanted in asked])
        for row, item in zip(rows, found, strict=True):
            chosen[row] = item
    return chosen


def draw(logit_SV: Tensor, params: SequenceOf[SamplingParams], numbers: SequenceOf[float]) -> list[int]:
    """For each row the token whose slice of the cumulative distribution holds the row's number in [0, 1).

    The distribution is that after temperature, min_p, top_k and top_p. Each row is computed on its own, so what
    stands beside it changes nothing.
    """
    device = logit_SV.device
    peak_SB = run_peaks(logit_SV)
    scale_S = torch.tensor([_LOG2E / max(item.temperature, _COOLEST) for item in params], device=device)
    # Relative to the likeliest token: weights from 0 to 1. Powers of two are computed thrice as fast as those of e.
    weight_SV = (logit_SV - peak_SB.amax(-1, keepdim=True)).mul_(scale_S[:, None]).exp2_()
    for row, item in enumerate(params):
        floor = _floor(weight_SV[row], peak_SB[row], item)
        if floor > 0.0:
            torch.threshold_(weight_SV[row], _just_below(floor), 0.0)
    sum_SB = run_sums(weight_SV).double()
    end_SB = sum_SB.cumsum(-1)
    target_S = _below(torch.tensor(numbers, dtype=torch.float64, device=device) * end_SB[:, -1], end_SB[:, -1])
    run_S1 = torch.searchsorted(end_SB, target_S[:, None], right=True)
    rest_S = target_S - (end_SB - sum_SB).gather(1, run_S1)[:, 0]
    end_SC = gather_run(weight_SV, run_S1[:, 0]).double().cumsum(-1)
    rest_S = _below(rest_S.clamp(min=0.0), end_SC[:, -1])
    place_S1 = torch.searchsorted(end_SC, rest_S[:, None], right=True)
    tokens: list[int] = (run_S1 * RUN + place_S1)[:, 0].tolist()
    return tokens


def _below(value_S: Tensor, end_S: Tensor) -> Tensor:
    """Values, moved below `end` where rounding brought them there."""
    return torch.minimum(value_S, torch.nextafter(end_S, torch.zeros_like(end_S)))


def _floor(weight_V: Tensor, peak_B: Tensor, params: SamplingParams) -> float:
    """The least weight, relative to the likeliest token's, that min_p, top_k and top_p leave in; 0: all of them."""
    floor = params.min_p
    top_k = params.top_k if 0 < params.top_k < len(weight_V) else 0
    if top_k:
        best_C = largest(weight_V, top_k, peak_B)[0]
        floor = max(floor, float(best_C[-1]))
        if params.top_p < 1.0:
            best_C = best_C[best_C >= floor]
            floor = _nucleus(best_C, params.top_p * float(best_C.sum(dtype=torch.float64)))
    elif params.top_p < 1.0:
        kept_V = torch.threshold(weight_V, _just_below(floor), 0.0) if floor > 0.0 else weight_V
        total = float(run_sums(kept_V[None]).sum(dtype=torch.float64))
        # What weighs less than this is, all together, less than what top_p leaves out; the small margin is rounding's.
        negligible = 0.99 * (1.0 - params.top_p) * total / len(weight_V)
        floor = max(floor, _nucleus(descending(kept_V, negligible), params.top_p * total))
    return floor


def _just_below(floor: float) -> float:
    """The next smaller float32, since `threshold` keeps what is greater."""
    return float(np.nextafter(np.float32(floor), np.float32(0.0)))


def _nucleus(best_C: Tensor, mass: float) -> float:
    """The least of the weights, best first, that have less than `mass` before them."""
    best_C = best_C.double()
    before_C = best_C.cumsum(0) - best_C
    return float(best_C[max(int((before_C < mass).sum()) - 1, 0)])


@torch.inference_mode()
def with_logprobs(
    logit_SV: Tensor, tokens: SequenceOf[int], wanted: SequenceOf[int], *, ranks: bool = False
) -> list[Sampled]:
    """For each row its token with log-probability, and as many of the likeliest ones as the row wants."""
    peak_SB = run_peaks(logit_SV)
    peak_S1 = peak_SB.amax(-1, keepdim=True)
    own_S1 = logit_SV.gather(1, torch.tensor(tokens, device=logit_SV.device)[:, None])
    sum_S1 = run_sums((logit_SV - peak_S1).mul_(_LOG2E).exp2_()).sum(-1, keepdim=True, dtype=torch.float64)
    total_S1 = peak_S1 + sum_S1.log()
    rank_S = (logit_SV > own_S1).sum(-1) + 1 if ranks else None
    owns, totals = (own_S1 - total_S1)[:, 0].tolist(), total_S1[:, 0].tolist()
    found: list[Sampled] = []
    for row, (token, count) in enumerate(zip(tokens, wanted, strict=True)):
        top: tuple[Logprob, ...] = ()
        if count:
            value_C, token_C = largest(logit_SV[row], min(count, logit_SV.shape[1]), peak_SB[row])
            pairs = zip(token_C.tolist(), value_C.tolist(), strict=True)
            top = tuple(Logprob(other, value - totals[row]) for other, value in pairs)
        found.append(Sampled(token, owns[row], top, None if rank_S is None else int(rank_S[row])))
    return found

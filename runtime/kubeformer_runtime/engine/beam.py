"""Beam search: the n likeliest answers, found by going on with the n best beginnings at every step.

As in vLLM: each beginning goes on with its 2n likeliest tokens; an end-of-sequence token among them completes an
answer; of the others the n best beginnings live on. A beginning's score is the sum of its log-probabilities divided
by its length, prompt included, to the power of `length_penalty`. At `max_tokens` what still lives counts as complete.

The search itself is pure. `batches` runs it over the engine: every step is one request a beginning for one token,
and the prefix cache makes that cheap.
"""

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from kubeformer_runtime.engine.async_engine import AsyncEngine
from kubeformer_runtime.engine.core import Delta, Request
from kubeformer_runtime.engine.detokenizer import Detokenizer
from kubeformer_runtime.engine.sampler import Logprob, Sampled
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.sequence import FinishReason
from kubeformer_runtime.engine.tokenizer import EngineTokenizer


@dataclass(frozen=True, slots=True)
class Beam:
    """An answer or its beginning."""

    path: tuple[Sampled, ...] = ()  # without the token that ends it
    logprob: float = 0.0  # of all its tokens together, the end's included
    end: int | None = None  # the token that ended it


class BeamSearch:
    """The search for one prompt."""

    def __init__(
        self, num_prompt_tokens: int, width: int, max_tokens: int, length_penalty: float, ends: Collection[int]
    ) -> None:
        self.live = [Beam()]
        self._done: list[Beam] = []
        self._prompt, self._width, self._max_tokens = num_prompt_tokens, width, max_tokens
        self._penalty, self._ends = length_penalty, ends
        self._steps = 0

    def score(self, beam: Beam, length: int | None = None) -> float:
        """What beams are compared by; `length`: as if the answer had so many tokens."""
        tokens = self._prompt + (len(beam.path) if length is None else length)
        return float(beam.logprob / tokens**self._penalty)

    def take(self, found: Sequence[Sequence[Logprob]]) -> None:
        """Go one step, given the likeliest tokens behind each of `live`, best first."""
        grown: list[tuple[float, Beam, Logprob, Sequence[Logprob]]] = []
        for beam, top in zip(self.live, found, strict=True):
            for item in top:
                total = beam.logprob + item.logprob
                if item.token in self._ends:
                    self._done.append(Beam(beam.path, total, item.token))
                else:
                    grown.append((total, beam, item, top))
        # All have the same length, so the sum alone decides. The sort is stable: of equal ones the first wins.
        grown.sort(key=lambda entry: -entry[0])
        self.live = [
            Beam((*beam.path, Sampled(item.token, item.logprob, tuple(top))), total)
            for total, beam, item, top in grown[: self._width]
        ]
        self._steps += 1

    @property
    def finished(self) -> bool:
        """Whether nothing that lives can still be among the best, or may grow."""
        if self._steps >= self._max_tokens or not self.live:
            return True
        if len(self._done) < self._width:
            return False
        worst = sorted(map(self.score, self._done), reverse=True)[self._width - 1]
        # Log-probabilities only fall, and with a positive penalty the longest answer divides them the most.
        longest = self._max_tokens if self._penalty > 0 else len(self.live[0].path)
        return max(self.score(beam, longest) for beam in self.live) < worst

    def best(self) -> list[Beam]:
        """The answers, best first."""
        return sorted([*self._done, *self.live], key=self.score, reverse=True)[: self._width]


async def batches(
    engine: AsyncEngine, tokenizer: EngineTokenizer, requests: Sequence[Request]
) -> AsyncGenerator[list[Delta]]:
    """What `AsyncEngine.batches` gives, for requests that ask for beam search: each choice comes whole, at the end.

    Raises:
        ParameterError, EngineDeadError, BacklogError: as there.
    """
    running: dict[str, tuple[Request, BeamSearch, int]] = {}  # the number: cached tokens of the first step
    for request in requests:
        params = request.params
        ends = frozenset() if params.ignore_eos else engine.core.end_tokens
        search = BeamSearch(len(request.prompt), params.n, params.max_tokens, params.length_penalty, ends)
        running[request.request_id] = (request, search, 0)
    step = 0
    while running:
        asked: dict[str, tuple[str, int]] = {}
        parts: list[Request] = []
        for request, search, _ in running.values():
            count = max(2 * request.params.n, request.params.logprobs or 0)
            one = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, logprobs=count)
            for place, beam in enumerate(search.live):
                name = f"{request.request_id}/{step}/{place}"
                asked[name] = (request.request_id, place)
                prompt = [*request.prompt, *(item.token for item in beam.path)]
                parts.append(replace(request, request_id=name, prompt=prompt, params=one))
        found: dict[tuple[str, int], tuple[Logprob, ...]] = {}
        async with aclosing(engine.generate(parts)) as deltas:
            async for delta in deltas:
                request_id, place = asked[delta.request_id]
                if delta.tokens:
                    found[request_id, place] = delta.tokens[0].top
                if not step:
                    request, search, _ = running[request_id]
                    running[request_id] = (request, search, delta.num_cached_tokens)
        step += 1
        for request, search, cached in list(running.values()):
            tops = [found.get((request.request_id, place)) for place in range(len(search.live))]
            complete = [top[: 2 * request.params.n] for top in tops if top is not None]
            if aborted := len(complete) < len(tops):
                search.live = []
            else:
                search.take(complete)
            if aborted or search.finished:
                del running[request.request_id]
                yield _answers(request, search, tokenizer, cached, aborted=aborted)


def _answers(
    request: Request, search: BeamSearch, tokenizer: EngineTokenizer, cached: int, *, aborted: bool
) -> list[Delta]:
    """The last and only delta of each choice."""
    params = request.params
    beams: list[Beam] = [] if aborted else search.best()
    deltas = []
    for index in range(params.n):
        beam = beams[index] if index < len(beams) else None
        reason, text = FinishReason.ABORT, ""
        tokens: tuple[Sampled, ...] = ()
        if beam is not None:
            reason = FinishReason.LENGTH if beam.end is None else FinishReason.STOP
            text = _text(request, beam, tokenizer)
            tokens = tuple(_shown(item, params.logprobs) for item in beam.path)
        deltas.append(
            Delta(
                request_id=request.request_id,
                index=index,
                text=text,
                tokens=tokens,
                finish_reason=reason,
                stop_reason=None if beam is None else beam.end,
                num_cached_tokens=cached,
            )
        )
    return deltas


def _text(request: Request, beam: Beam, tokenizer: EngineTokenizer) -> str:
    params = request.params
    decode = partial(tokenizer.decode, skip_special_tokens=params.skip_special_tokens)
    detokenizer = Detokenizer(decode, request.prompt)
    tokens = [item.token for item in beam.path]
    if beam.end is not None and params.include_stop_str_in_output and not params.skip_special_tokens:
        tokens.append(beam.end)
    return "".join(detokenizer.push(token) for token in tokens) + detokenizer.flush()


def _shown(item: Sampled, wanted: int | None) -> Sampled:
    """As much of a token's log-probabilities as was asked for."""
    return Sampled(item.token) if wanted is None else Sampled(item.token, item.logprob, item.top[:wanted])

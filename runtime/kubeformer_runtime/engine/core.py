"""EngineCore: the loop's body. `step()` schedules, runs the model, samples, and says what is new.

It runs in one thread and knows no other; async_engine.py puts a thread and an event loop around it. Whatever
goes wrong with one request ends that request alone; an exception out of `step` means the engine is broken.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from kubeformer_runtime.engine.batch import Batch, build_batch
from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.detokenizer import Detokenizer, StopStrings
from kubeformer_runtime.engine.sampler import Sampled, SamplerState, sample, seed_of_choice
from kubeformer_runtime.engine.sampling_params import ParameterError, SamplingParams
from kubeformer_runtime.engine.scheduler import SchedulerConfig, SchedulerState, advance, finish, schedule
from kubeformer_runtime.engine.sequence import FinishReason, Sequence
from kubeformer_runtime.engine.tokenizer import EngineTokenizer


class ModelRunner(Protocol):
    """What runs the model; see llama_runner.py."""

    num_blocks: int
    block_size: int
    dtype: torch.dtype
    device: torch.device

    def execute(self, batch: Batch) -> Tensor:
        """Compute a step; float32 logits (S, V) for the rows that sample."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for. `seed` is what `params.seed` was, or one that the front drew."""

    request_id: str
    prompt: list[int]
    params: SamplingParams
    seed: int


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of one choice of a request after a step."""

    request_id: str
    index: int
    text: str
    tokens: tuple[Sampled, ...]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or token that ended it
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    queue_seconds: float = 0.0  # from its arrival to its first step


@dataclass(frozen=True, slots=True)
class StepStats:
    """Counts for /metrics: the state after a step, and what the step did."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    prompt_tokens: int = 0  # of sequences admitted for the first time
    cached_tokens: int = 0  # of those, found in the prefix cache
    generation_tokens: int = 0
    preemptions: int = 0
    step_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Everything that a step has to tell."""

    deltas: tuple[Delta, ...]
    stats: StepStats


@dataclass(slots=True)
class Choice:
    """One sequence with what turns its tokens into text."""

    request_id: str
    index: int
    seq: Sequence
    sampler: SamplerState
    detokenizer: Detokenizer
    stops: StopStrings
    end_tokens: frozenset[int]
    arrival: float
    queue_seconds: float = 0.0


class EngineCore:
    """Requests in, deltas out, one step at a time."""

    def __init__(
        self,
        runner: ModelRunner,
        config: SchedulerConfig,
        tokenizer: EngineTokenizer,
        eos_token_ids: frozenset[int],
        *,
        prefix_caching: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ValueError where a sequence of full length would not fit the runner's cache."""
        if config.max_model_len > runner.num_blocks * runner.block_size:
            raise ValueError(
                f"max_model_len is {config.max_model_len}, but the KV cache holds "
                f"{runner.num_blocks * runner.block_size} tokens; one sequence of full length has to fit"
            )
        self.config = config
        self._runner = runner
        self._tokenizer = tokenizer
        self._eos = eos_token_ids
        self._state = SchedulerState(BlockManager(runner.num_blocks, runner.block_size, prefix_caching=prefix_caching))
        self._choices: dict[int, Choice] = {}  # by seq_id
        self._requests: dict[str, list[int]] = {}
        self._next_id = 0
        self._clock = clock

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self._choices)

    def check(self, request: Request) -> None:
        """Raise ParameterError where the request can never run. Safe from any thread."""
        length, most = len(request.prompt), self.config.max_model_len
        if not request.prompt:
            raise ParameterError("prompt", "The prompt has no tokens; give at least one.")
        if length >= most:
            raise ParameterError(
                "prompt",
                f"The prompt has {length} tokens, but this model takes at most {most}, prompt and answer together; "
                "shorten the prompt.",
            )

    def add(self, request: Request) -> None:
        """Put a request in line; the caller has checked it."""
        params = request.params
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos)
        decode = partial(self._tokenizer.decode, skip_special_tokens=params.skip_special_tokens)
        ids: list[int] = []
        for index in range(params.n):
            seq = Sequence(self._next_id, request.prompt, params)
            self._next_id += 1
            self._choices[seq.seq_id] = Choice(
                request_id=request.request_id,
                index=index,
                seq=seq,
                sampler=SamplerState(params, seed_of_choice(request.seed, index), tuple(sorted(ends)), request.prompt),
                detokenizer=Detokenizer(decode, request.prompt),
                stops=StopStrings(params.stop, include=params.include_stop_str_in_output),
                end_tokens=ends,
                arrival=self._clock(),
            )
            ids.append(seq.seq_id)
            self._state.waiting.append(seq)
        self._requests[request.request_id] = ids

    def abort(self, request_id: str) -> list[Delta]:
        """End what is left of a request; unknown or finished ones are no error."""
        deltas: list[Delta] = []
        for seq_id in self._requests.pop(request_id, []):
            if (choice := self._choices.pop(seq_id, None)) is not None:
                finish(self._state, choice.seq, FinishReason.ABORT)
                deltas.append(self._delta(choice, "", None, None))
        return deltas

    def abort_all(self) -> list[Delta]:
        """End everything."""
        return [delta for request_id in list(self._requests) for delta in self.abort(request_id)]

    def step(self) -> StepOutput:
        """Compute one step. Nothing to do is an empty step."""
        plan = schedule(self._state, self.config)
        deltas: list[Delta] = []
        fresh = [seq for seq in plan.admitted if not seq.num_preemptions]
        for seq in fresh:
            choice = self._choices[seq.seq_id]
            choice.queue_seconds = self._clock() - choice.arrival
        sampling = [item.seq for item in plan.scheduled if item.samples]
        if plan.scheduled:
            batch = build_batch(plan.scheduled, self._runner.block_size, self._runner.dtype, self._runner.device)
            logit_SV = self._runner.execute(batch)
            sampled = sample(logit_SV, [self._choices[seq.seq_id].sampler for seq in sampling])
            advance(plan, [item.token for item in sampled])
            for seq, item in zip(sampling, sampled, strict=True):
                deltas.append(self._react(self._choices[seq.seq_id], item))
        stats = self.stats()
        return StepOutput(
            tuple(deltas),
            StepStats(
                running=stats.running,
                waiting=stats.waiting,
                kv_cache_usage=stats.kv_cache_usage,
                prompt_tokens=sum(seq.num_prompt_tokens for seq in fresh),
                cached_tokens=sum(seq.num_cached_tokens for seq in fresh),
                generation_tokens=len(sampling),
                preemptions=len(plan.preempted),
                step_tokens=plan.num_tokens,
            ),
        )

    def stats(self) -> StepStats:
        """The state alone."""
        state = self._state
        return StepStats(len(state.running), len(state.waiting), state.blocks.usage)

    def check_books(self) -> None:
        """Raise AssertionError unless every block is accounted for. For tests."""
        self._state.blocks.check([choice.seq for choice in self._choices.values()])

    def forget_prefixes(self) -> None:
        """Drop the prefix cache, for instance after warming up."""
        self._state.blocks.forget()

    def _react(self, choice: Choice, sampled: Sampled) -> Delta:
        """Text and end of one choice after a token."""
        seq, params = choice.seq, choice.seq.params
        reason: FinishReason | None = None
        stop_reason: str | int | None = None
        early = seq.num_output_tokens < params.min_tokens
        text = ""
        if sampled.token in choice.end_tokens and not early:
            reason = FinishReason.STOP
            if sampled.token in params.stop_token_ids:
                stop_reason = sampled.token
            if not params.skip_special_tokens and params.include_stop_str_in_output:
                text = choice.detokenizer.push(sampled.token)
        else:
            text = choice.detokenizer.push(sampled.token)
            if seq.num_output_tokens >= params.max_tokens or seq.num_tokens >= self.config.max_model_len:
                reason = FinishReason.LENGTH
        if reason is not None:
            text += choice.detokenizer.flush()
        if not early:
            text = choice.stops.push(text, last=reason is not None)
            if choice.stops.found is not None:
                reason, stop_reason = FinishReason.STOP, choice.stops.found
        if reason is not None:
            finish(self._state, seq, reason)
            del self._choices[seq.seq_id]
            left = self._requests[choice.request_id]
            left.remove(seq.seq_id)
            if not left:
                del self._requests[choice.request_id]
        return self._delta(choice, text, sampled, stop_reason)

    @staticmethod
    def _delta(choice: Choice, text: str, sampled: Sampled | None, stop_reason: str | int | None) -> Delta:
        return Delta(
            request_id=choice.request_id,
            index=choice.index,
            text=text,
            tokens=() if sampled is None else (sampled,),
            finish_reason=choice.seq.finish_reason,
            stop_reason=stop_reason,
            num_cached_tokens=choice.seq.num_cached_tokens,
            num_preemptions=choice.seq.num_preemptions,
            queue_seconds=choice.queue_seconds,
        )

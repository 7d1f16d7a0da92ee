"""Scheduler: which sequences advance in the next step, and by how many tokens. Pure: no clock, no torch, no I/O.

Continuous batching with chunked prefill, first come, first served. Each step has a budget of
`max_num_batched_tokens`. Running sequences come first, so that answers keep flowing; what is left goes to
waiting ones. A sequence gets as many of its not yet computed tokens as fit: one in decode, a chunk of its
prompt in prefill. If blocks run out, the sequence that came last gives back all of its blocks and is computed
anew later (preemption by recomputation), so the first one always finishes.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.sequence import FinishReason, Sequence, Status


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one step and of one sequence."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_model_len: int = 8192

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1")


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`seq` computes its tokens [start, start + num_new_tokens); if those are its last, a token is sampled."""

    seq: Sequence
    start: int
    num_new_tokens: int

    @property
    def samples(self) -> bool:
        return self.start + self.num_new_tokens == self.seq.num_tokens


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step: decodes and prefills together."""

    scheduled: tuple[Scheduled, ...]
    admitted: tuple[Sequence, ...]
    preempted: tuple[Sequence, ...]

    @property
    def num_tokens(self) -> int:
        return sum(item.num_new_tokens for item in self.scheduled)


@dataclass(slots=True)
class SchedulerState:
    """Everything a decision depends on. `running` is in order of admission, `waiting` of arrival."""

    blocks: BlockManager
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)


def schedule(state: SchedulerState, config: SchedulerConfig) -> SchedulerOutput:
    """Choose the next step and take the blocks it needs. The same state gives the same step."""
    budget = config.max_num_batched_tokens
    scheduled: list[Scheduled] = []
    admitted: list[Sequence] = []
    preempted: list[Sequence] = []

    index = 0
    while index < len(state.running) and budget:
        seq = state.running[index]
        num_new = min(seq.num_tokens - seq.num_computed_tokens, budget)
        while not state.blocks.allocate(seq, num_new):
            victim = state.running.pop()
            preempt(state, victim)
            preempted.append(victim)
            if victim is seq:
                break
        else:
            scheduled.append(Scheduled(seq, seq.num_computed_tokens, num_new))
            budget -= num_new
            index += 1

    while state.waiting and not preempted and budget and len(state.running) < config.max_num_seqs:
        seq = state.waiting[0]
        cached = state.blocks.match(seq)
        if not state.blocks.can_admit(seq, cached):
            break
        state.waiting.popleft()
        state.blocks.admit(seq, cached)
        if not seq.num_preemptions:
            seq.num_cached_tokens = seq.num_computed_tokens
        num_new = min(seq.num_tokens - seq.num_computed_tokens, budget)
        state.blocks.allocate(seq, num_new)
        seq.status = Status.RUNNING
        state.running.append(seq)
        admitted.append(seq)
        scheduled.append(Scheduled(seq, seq.num_computed_tokens, num_new))
        budget -= num_new

    return SchedulerOutput(tuple(scheduled), tuple(admitted), tuple(preempted))


def preempt(state: SchedulerState, seq: Sequence) -> None:
    """Give back the blocks of `seq`, already taken out of `running`, and put it first in line."""
    state.blocks.free(seq)
    seq.status = Status.WAITING
    seq.num_preemptions += 1
    state.waiting.appendleft(seq)


def advance(output: SchedulerOutput, sampled: Iterable[int]) -> None:
    """Record that the step was computed; `sampled` has one token for each scheduled item that samples, in order."""
    tokens = iter(sampled)
    for item in output.scheduled:
        samples = item.samples
        item.seq.num_computed_tokens += item.num_new_tokens
        if samples:
            item.seq.tokens.append(next(tokens))


def finish(state: SchedulerState, seq: Sequence, reason: FinishReason) -> None:
    """End `seq`, wherever it is, and give back its blocks. Ending it twice is harmless."""
    if seq.status is Status.FINISHED:
        return
    if seq.status is Status.RUNNING:
        state.running.remove(seq)
    else:
        state.waiting.remove(seq)
    state.blocks.free(seq)
    seq.status = Status.FINISHED
    seq.finish_reason = reason

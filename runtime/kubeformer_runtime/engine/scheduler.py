"""Scheduler: which sequences advance in the next step, and by how many tokens. Pure: no clock, no torch, no I/O.

Continuous batching with chunked prefill. Importance is (priority, arrival), the smaller the better, and both lists
are kept in that order. A step goes in three parts:
1. While a waiting sequence has a better priority than a running one, it joins, and where there is no slot or room
   the least important running one gives way.
2. Running sequences share the step's budget of tokens. The most important one always gets some; then everyone who
   decodes gets what a decode needs; then prompts get the rest, in chunks. If blocks run out, the least important
   one gives back all of its blocks and is computed anew later (preemption by recomputation).
3. Waiting ones join in order while tokens, a slot and room are left; nobody overtakes.

So the most important unfinished sequence advances in every step and loses its blocks only to one of better priority:
after its arrival, and after each arrival of a better priority, a sequence takes at most as many steps as it and all
more important ones have tokens. Only an endless stream of better priority can hold it up for ever.
"""

from bisect import insort
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from operator import attrgetter

from kubeformer_runtime.engine.plan import Scheduled, SchedulerConfig, SchedulerOutput, SchedulerState
from kubeformer_runtime.engine.sequence import FinishReason, Sequence, Status

LEAST_CHUNK = 16  # tokens a step that prompts get however many decode: a block of the cache
SCORED_CHUNK = 128  # tokens a step of a prompt whose every row needs logits, because each is as wide as the vocabulary
__all__ = ["Scheduled", "SchedulerConfig", "SchedulerOutput", "SchedulerState"]


def enqueue(state: SchedulerState, seq: Sequence) -> None:
    """Put a sequence in line."""
    insort(state.waiting, seq, key=attrgetter("rank"))


def schedule(state: SchedulerState, config: SchedulerConfig) -> SchedulerOutput:
    """Choose the next step and take the blocks it needs. The same state gives the same step."""
    running, waiting, blocks = state.running, state.waiting, state.blocks
    scheduled, admitted, preempted = list[Scheduled](), list[Sequence](), list[Sequence]()

    while waiting and running and waiting[0].priority < running[-1].priority:
        if (seq := _admit(state, config)) is not None:
            admitted.append(seq)
        else:
            preempted.append(preempt(state))

    budget = _Budget.of(running, config)
    order = sorted(range(len(running)), key=lambda index: index > 0 and not running[index].decoding)
    shares = {index: budget.take(running[index]) for index in order}
    for index, seq in enumerate(list(running)):
        share = shares[index]
        while seq.status is Status.RUNNING and not blocks.allocate(seq, share):
            if seq.drafts:  # a guess is not worth anybody's blocks
                share -= len(seq.drafts)
                seq.drafts.clear()
            else:
                preempted.append(preempt(state))
        if share and seq.status is Status.RUNNING:
            scheduled.append(Scheduled(seq, seq.num_computed_tokens, share, len(seq.drafts)))

    while waiting and budget.tokens and budget.prompts and (seq := _admit(state, config)) is not None:
        admitted.append(seq)
        share = budget.take(seq)
        if not blocks.allocate(seq, share):
            raise RuntimeError("a sequence was admitted without room")
        scheduled.append(Scheduled(seq, seq.num_computed_tokens, share))
    return SchedulerOutput(tuple(scheduled), tuple(admitted), tuple(preempted))


@dataclass(slots=True)
class _Budget:
    """What is left of a step."""

    tokens: int
    prompts: int  # of those, for prompts

    @classmethod
    def of(cls, running: SequenceOf[Sequence], config: SchedulerConfig) -> "_Budget":
        """That of a whole step. Where decodes and their drafts would take more than half of it, drafts are dropped."""
        tokens, decodes = config.max_num_batched_tokens, [seq for seq in running if seq.decoding]
        need = sum(seq.num_uncomputed_tokens for seq in decodes)
        if need > tokens // 2:
            need = len(decodes)
            for seq in decodes:
                seq.drafts.clear()
        prompts = config.prefill_chunk
        if decodes:
            prompts = min(prompts, max(LEAST_CHUNK, config.mixed_tokens - need))
        return cls(tokens, min(prompts, max(1, tokens - need)))

    def take(self, seq: Sequence) -> int:
        """How many tokens `seq` computes."""
        share = min(seq.num_uncomputed_tokens, self.tokens)
        if not seq.decoding:
            share = min(share, self.prompts, SCORED_CHUNK if seq.scoring else share)
            self.prompts -= share
        self.tokens -= share
        return share


def _admit(state: SchedulerState, config: SchedulerConfig) -> Sequence | None:
    """Let the first waiting sequence run if there is a slot and room for it."""
    seq, running, blocks = state.waiting[0], state.running, state.blocks
    if len(running) >= config.max_num_seqs:
        return None
    # Running ones keep room for what they have yet to compute, and a block each, lest somebody is preempted at once.
    spare = blocks.num_free_blocks - len(running) - sum(blocks.num_missing_blocks(other) for other in running)
    cached = blocks.match(seq)
    if blocks.num_needed_blocks(seq, cached) > spare:
        return None
    state.waiting.pop(0)
    blocks.admit(seq, cached)
    if not seq.num_preemptions:
        seq.num_cached_tokens = seq.num_computed_tokens
    seq.status = Status.RUNNING
    insort(running, seq, key=attrgetter("rank"))
    return seq


def preempt(state: SchedulerState) -> Sequence:
    """Send the least important running sequence back in line, without its blocks."""
    seq = state.running.pop()
    state.blocks.free(seq)
    seq.drafts.clear()
    seq.status = Status.WAITING
    seq.num_preemptions += 1
    enqueue(state, seq)
    return seq


def advance(output: SchedulerOutput, sampled: Iterable[SequenceOf[int]]) -> None:
    """Record that the step was computed.

    `sampled` has the tokens for each item that samples, in order: the accepted drafts, then the one chosen after them.
    The keys and values of refused drafts are of no use: their positions are computed again.
    """
    tokens = iter(sampled)
    for item in output.scheduled:
        seq, samples = item.seq, item.samples
        if seq.scoring:
            seq.num_scored_tokens = min(item.start + item.num_new_tokens, seq.num_prompt_tokens - 1)
        seq.num_computed_tokens += item.num_new_tokens - item.num_drafts
        if samples:
            chosen = next(tokens)
            seq.num_computed_tokens += len(chosen) - 1
            seq.tokens.extend(chosen)
            seq.drafts = []


def finish(state: SchedulerState, seq: Sequence, reason: FinishReason) -> None:
    """End `seq`, wherever it is, and give back its blocks. Ending it twice is harmless."""
    if seq.status is Status.FINISHED:
        return
    (state.running if seq.status is Status.RUNNING else state.waiting).remove(seq)
    state.blocks.free(seq)
    seq.status = Status.FINISHED
    seq.finish_reason = reason

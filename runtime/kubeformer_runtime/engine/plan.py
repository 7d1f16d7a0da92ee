"""What the scheduler is told and what it says: its limits, the state of things, and one step. Pure."""

from dataclasses import dataclass, field

from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one step and of one sequence."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_model_len: int = 8192
    prefill_chunk: int = 256  # prompt tokens a step, so that no abort waits for long
    mixed_tokens: int = 40  # tokens of a step in which some decode while prompts are read, so that no answer stutters

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "prefill_chunk", "mixed_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1")


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`seq` computes the positions [start, start + num_new_tokens), of which the last `num_drafts` are guesses."""

    seq: Sequence
    start: int
    num_new_tokens: int
    num_drafts: int = 0

    @property
    def samples(self) -> bool:
        """Whether these are its last tokens, so that the next one is chosen."""
        return self.start + self.num_new_tokens == self.seq.num_tokens + self.num_drafts

    @property
    def wanted(self) -> range:
        """Positions whose logits are wanted: the last token, each draft, and of a prompt to be scored all."""
        stop = self.start + self.num_new_tokens
        if self.seq.scoring:
            return range(max(self.start, self.seq.num_scored_tokens), stop)
        return range(stop - 1 - self.num_drafts if self.samples else stop, stop)


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
    """Everything a decision depends on. Both lists are sorted, the most important sequence first."""

    blocks: BlockManager
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)

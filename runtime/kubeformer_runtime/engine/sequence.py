"""Sequence: one answer on its way. A request of n choices is n sequences over the same prompt. Pure.

The one idea of the scheduler lives here: a sequence has tokens, and the first `num_computed_tokens` of them
are in the KV cache. Prefill, a chunk of it, decode, checking drafts, and starting anew after preemption are all
the same thing: computed tokens fewer than tokens.
"""

from dataclasses import dataclass, field
from enum import Enum

from kubeformer_runtime.engine.sampling_params import SamplingParams


class Status(Enum):
    """Where a sequence is."""

    WAITING = "waiting"  # holds no blocks
    RUNNING = "running"
    FINISHED = "finished"  # holds no blocks


class FinishReason(Enum):
    """Why a sequence ended, in OpenAI's words where it has one."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens or the model's length
    ABORT = "abort"  # the client left, or the engine stops


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable state of one sequence; the scheduler and the block manager alone change it, but for `drafts`."""

    seq_id: int  # grows with every arrival, so it also says who came first
    prompt: list[int]
    params: SamplingParams
    priority: int = 0  # the lower, the more important
    adapter: str | None = None  # keys and values depend on it, so prefixes are shared under the same one only
    cache_salt: str | None = None  # prefixes are shared under the same one only
    tokens: list[int] = field(init=False)  # the prompt, then what was generated
    drafts: list[int] = field(default_factory=list)  # guesses at what follows `tokens`, to be checked in the next step
    num_computed_tokens: int = 0  # how many of `tokens` have their keys and values in the cache
    num_scored_tokens: int = 0  # how many rows of the prompt had their logits handed out
    block_table: list[int] = field(default_factory=list)  # block i holds tokens [16 i, 16 i + 16)
    block_hashes: list[bytes] = field(default_factory=list)  # of the full blocks of `tokens`, as far as needed yet
    num_registered_blocks: int = 0  # how many blocks of the table the prefix cache was told of
    status: Status = Status.WAITING
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache when it was first admitted
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a sequence needs a prompt of at least one token")
        self.tokens = list(self.prompt)

    @property
    def rank(self) -> tuple[int, int]:
        """Importance: the smaller goes first."""
        return (self.priority, self.seq_id)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens and drafts that the model has not seen yet."""
        return len(self.tokens) + len(self.drafts) - self.num_computed_tokens

    @property
    def decoding(self) -> bool:
        """Whether one token is all that is left to compute, drafts aside."""
        return len(self.tokens) - self.num_computed_tokens == 1

    @property
    def scoring(self) -> bool:
        """Whether rows of the prompt still have to be handed out. The last one chooses the first token, it is extra."""
        return self.params.prompt_logprobs is not None and self.num_scored_tokens < len(self.prompt) - 1

    def span(self, start: int, stop: int) -> list[int]:
        """Tokens, then drafts, at the positions [start, stop); `start` is that of a token."""
        return self.tokens[start:stop] + self.drafts[: max(0, stop - len(self.tokens))]

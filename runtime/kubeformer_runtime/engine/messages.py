"""What passes in and out of the engine: a request, what is new of its choices, and what a step did. Pure."""

from dataclasses import dataclass

from kubeformer_runtime.engine.sampler import Sampled
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.sequence import FinishReason
from kubeformer_runtime.engine.structured import CompiledStructure


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for. `seed` is what `params.seed` was, or one that the front drew."""

    request_id: str
    prompt: list[int]
    params: SamplingParams
    seed: int
    priority: int = 0  # the lower, the sooner
    adapter: str | None = None
    cache_salt: str | None = None  # prefixes are shared only among requests with the same one
    structure: CompiledStructure | None = None  # of `params.structured`


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
    prompt_logprobs: tuple[Sampled, ...] = ()  # with the first token: those of the prompt's, but for the first one's


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
    num_drafts: int = 0  # sequences that had drafts
    draft_tokens: int = 0
    accepted_tokens: int = 0  # of those
    schedule_seconds: float = 0.0
    forward_seconds: float = 0.0
    sample_seconds: float = 0.0
    detokenize_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Everything that a step has to tell."""

    deltas: tuple[Delta, ...]
    stats: StepStats

"""EngineCore: the loop's body. `step()` schedules, runs the model, samples, and says what is new.

It runs in one thread and knows no other; async_engine.py puts a thread and an event loop around it. Whatever
goes wrong with one request ends that request alone; an exception out of `step` means the engine is broken.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from kubeformer_runtime.engine.adapters import AdapterRunner, Adapters
from kubeformer_runtime.engine.batch import Batch, build_batch
from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.detokenizer import Detokenizer, StopStrings
from kubeformer_runtime.engine.memory import give_back_memory
from kubeformer_runtime.engine.messages import Delta, Request, StepOutput, StepStats
from kubeformer_runtime.engine.plan import SchedulerConfig, SchedulerOutput
from kubeformer_runtime.engine.sampler import Sampled, SamplerState, sample, seed_of_choice, with_logprobs
from kubeformer_runtime.engine.sampling_params import ParameterError
from kubeformer_runtime.engine.scheduler import SchedulerState, advance, enqueue, finish, preempt, schedule
from kubeformer_runtime.engine.sequence import FinishReason, Sequence
from kubeformer_runtime.engine.speculation import Drafter, verify, without_end
from kubeformer_runtime.engine.structured import StructureState
from kubeformer_runtime.engine.tokenizer import EngineTokenizer

__all__ = ["Delta", "EngineCore", "ModelRunner", "Request", "StepOutput", "StepStats"]
DRAFT_ROWS = 8  # drafts of all sequences together in a step: the more rows, the less another one is nearly free


class ModelRunner(AdapterRunner, Protocol):
    """What runs the model; see llama_runner.py."""

    num_blocks: int
    block_size: int
    dtype: torch.dtype
    device: torch.device
    kernels: str  # what computes: "torch", or how our own kernels were compiled

    def execute(self, batch: Batch) -> Tensor:
        """Compute a step; float32 logits (S, V) for the rows that sample."""
        ...

    def release(self) -> None:
        """Let go of weights and cache; nothing can be computed before `restore`."""
        ...

    def restore(self) -> None:
        """Load the weights again, and begin with an empty cache."""
        ...


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
    drafter: Drafter | None = None
    queue_seconds: float = 0.0
    prompt_logprobs: list[Sampled] = field(default_factory=list)


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
        speculative_tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`speculative_tokens`: most drafts a step and sequence.

        Raises:
            ValueError: a sequence of full length would not fit the runner's cache.
        """
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
        self._speculative_tokens = speculative_tokens
        self._prefix_caching = prefix_caching
        self.asleep = False
        self._adapters = Adapters(runner)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer, unless it ignores them."""
        return self._eos

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self._choices) and not self.asleep

    @property
    def kernels(self) -> str:
        """What computes: "torch", or the instruction set that our own kernels use."""
        return self._runner.kernels

    @property
    def cache_config(self) -> dict[str, object]:
        """How the KV cache is set up, in vLLM's words."""
        return {
            "block_size": self._runner.block_size,
            "cache_dtype": str(self._runner.dtype).removeprefix("torch."),
            "enable_prefix_caching": self._prefix_caching,
            "num_gpu_blocks": self._runner.num_blocks,  # vLLM's name, wherever the blocks lie
        }

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
        self._adapter_key(request)

    def add(self, request: Request) -> None:
        """Put a request in line; the caller has checked it. Raises ParameterError if its adapter is gone since."""
        params, adapter = request.params, self._adapter_key(request)
        bound = request.structure  # where the form ends, the answer does, whatever ignore_eos says
        if bound is None and params.structured is not None:
            raise ParameterError("structured", "The form of the answer was not compiled.")
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos and bound is None else self._eos)
        decode = partial(self._tokenizer.decode, skip_special_tokens=params.skip_special_tokens)
        ids: list[int] = []
        for index in range(params.n):
            seq = Sequence(self._next_id, request.prompt, params, request.priority, adapter, request.cache_salt)
            self._next_id += 1
            if index:
                seq.num_scored_tokens = seq.num_prompt_tokens  # the first choice's are enough
            self._choices[seq.seq_id] = Choice(
                request_id=request.request_id,
                index=index,
                seq=seq,
                sampler=SamplerState(
                    params,
                    seed_of_choice(request.seed, index),
                    tuple(sorted(ends)),
                    request.prompt,
                    structure=bound.start() if bound is not None else None,
                ),
                detokenizer=Detokenizer(decode, request.prompt),
                stops=StopStrings(params.stop, include=params.include_stop_str_in_output),
                end_tokens=ends,
                arrival=self._clock(),
                drafter=Drafter() if self._speculative_tokens else None,
            )
            ids.append(seq.seq_id)
            enqueue(self._state, seq)
        self._requests[request.request_id] = ids

    def abort(self, request_id: str) -> list[Delta]:
        """End what is left of a request; unknown or finished ones are no error."""
        deltas: list[Delta] = []
        for seq_id in self._requests.pop(request_id, []):
            if (choice := self._choices.pop(seq_id, None)) is not None:
                finish(self._state, choice.seq, FinishReason.ABORT)
                deltas.append(self._delta(choice, "", (), None))
        return deltas

    def abort_all(self) -> list[Delta]:
        """End everything."""
        return [delta for request_id in list(self._requests) for delta in self.abort(request_id)]

    def step(self) -> StepOutput:
        """Compute one step. Nothing to do is an empty step."""
        if self.asleep:
            return StepOutput((), self.stats())
        self._free_adapters()
        clock = self._clock
        begin = clock()
        if self._speculative_tokens:
            self._guess()
        plan = schedule(self._state, self.config)
        fresh = [seq for seq in plan.admitted if not seq.num_preemptions]
        for seq in fresh:
            choice = self._choices[seq.seq_id]
            choice.queue_seconds = begin - choice.arrival
        if not plan.scheduled:
            return StepOutput((), replace(self.stats(), preemptions=len(plan.preempted)))
        batch = build_batch(plan.scheduled, self._runner.block_size, self._runner.dtype, self._runner.device)
        laid_out = clock()
        logit_SV = self._runner.execute(batch)
        computed = clock()
        sampling = [item for item in plan.scheduled if item.samples]
        chosen = self._choose(plan, logit_SV)
        advance(plan, [[item.token for item in items] for items in chosen])
        sampled = clock()
        deltas = [self._react(self._choices[item.seq.seq_id], new) for item, new in zip(sampling, chosen, strict=True)]
        accepted = sum(len(new) - 1 for item, new in zip(sampling, chosen, strict=True) if item.num_drafts)
        state = self._state
        stats = StepStats(
            running=len(state.running),
            waiting=len(state.waiting),
            kv_cache_usage=state.blocks.usage,
            prompt_tokens=sum(seq.num_prompt_tokens for seq in fresh),
            cached_tokens=sum(seq.num_cached_tokens for seq in fresh),
            generation_tokens=sum(len(delta.tokens) for delta in deltas),
            preemptions=len(plan.preempted),
            step_tokens=plan.num_tokens,
            num_drafts=sum(item.num_drafts > 0 for item in sampling),
            draft_tokens=sum(item.num_drafts for item in sampling),
            accepted_tokens=accepted,
            schedule_seconds=laid_out - begin,
            forward_seconds=computed - laid_out,
            sample_seconds=sampled - computed,
            detokenize_seconds=clock() - sampled,
        )
        return StepOutput(tuple(deltas), stats)

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

    def sleep(self) -> None:
        """Give the memory of weights and cache back; what runs is computed anew after `wake`. Twice is harmless."""
        if self.asleep:
            return
        while self._state.running:
            preempt(self._state)
        self.forget_prefixes()
        self._runner.release()
        self.asleep = True
        give_back_memory()

    def wake(self) -> None:
        """Load the weights again and go on. Raises ModelError where they are gone; then it sleeps on."""
        if self.asleep:
            self._runner.restore()
            self.asleep = False

    def add_adapter(self, name: str, directory: str | Path) -> None:
        """Load a LoRA adapter. Raises ModelError where it cannot be used or the name is taken."""
        self._adapters.add(name, directory)

    def remove_adapter(self, name: str) -> None:
        """Unload one; answers under way end with it. Raises ModelError for a name that is not loaded."""
        self._adapters.remove(name)
        self._free_adapters()

    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that requests may use. Safe from any thread."""
        return self._adapters.names

    def _adapter_key(self, request: Request) -> str | None:
        try:
            return self._adapters.key(request.adapter)
        except KeyError:
            raise ParameterError("model", f"The adapter `{request.adapter}` is not loaded.") from None

    def _free_adapters(self) -> None:
        if self._adapters.removed:
            self._adapters.collect({choice.seq.adapter for choice in self._choices.values()})

    def _guess(self) -> None:
        """Give drafts to the sequences that decode."""
        decoding = [seq for seq in self._state.running if seq.decoding]
        for seq in decoding:
            choice = self._choices[seq.seq_id]
            longest = min(self.config.max_model_len, seq.num_prompt_tokens + seq.params.max_tokens)
            most = min(self._speculative_tokens, DRAFT_ROWS // len(decoding), longest - seq.num_tokens - 1)
            if most > 0 and choice.drafter is not None:
                seq.drafts = without_end(choice.drafter.propose(seq.tokens, most), choice.end_tokens)

    def _choose(self, plan: SchedulerOutput, logit_SV: Tensor) -> list[list[Sampled]]:
        """The new tokens of each item that samples; on the way, rows of prompts are scored."""
        sampling = [item for item in plan.scheduled if item.samples]
        states = [self._choices[item.seq.seq_id].sampler for item in sampling]
        if len(logit_SV) == len(sampling) and not any(item.seq.scoring for item in plan.scheduled):
            return [[item] for item in sample(logit_SV, states)]
        first_rows: list[int] = []
        row = 0
        for item in plan.scheduled:
            seq, wanted = item.seq, item.wanted
            if seq.scoring and (tokens := seq.prompt[wanted.start + 1 : wanted.stop + 1]):
                counts = [seq.params.prompt_logprobs or 0] * len(tokens)
                scores = with_logprobs(logit_SV[row : row + len(tokens)], tokens, counts, ranks=True)
                self._choices[seq.seq_id].prompt_logprobs.extend(scores)
            row += len(wanted)
            if item.samples:
                first_rows.append(row - 1 - item.num_drafts)

        def choose(which: list[int], depth: int) -> list[Sampled]:
            return sample(logit_SV[[first_rows[index] + depth for index in which]], [states[index] for index in which])

        drafts = [list(item.seq.drafts) for item in sampling]
        chosen = verify(drafts, choose, lambda item: item.token)
        for item, new in zip(sampling, chosen, strict=True):
            drafter = self._choices[item.seq.seq_id].drafter
            if item.num_drafts and drafter is not None:
                drafter.learn(item.seq.num_tokens, item.num_drafts, len(new) - 1)
        return chosen

    def _react(self, choice: Choice, chosen: list[Sampled]) -> Delta:
        """Text and end of one choice after new tokens; those behind its end are dropped."""
        seq, text, used = choice.seq, "", 0
        reason: FinishReason | None = None
        stop_reason: str | int | None = None
        before = seq.num_output_tokens - len(chosen)
        while reason is None and used < len(chosen):
            used += 1
            piece, reason, stop_reason = self._judge(choice, chosen[used - 1].token, before + used)
            text += piece
        if reason is not None:
            finish(self._state, seq, reason)
            del self._choices[seq.seq_id]
            left = self._requests[choice.request_id]
            left.remove(seq.seq_id)
            if not left:
                del self._requests[choice.request_id]
        return self._delta(choice, text, tuple(chosen[:used]), stop_reason)

    def _judge(
        self, choice: Choice, token: int, num_output_tokens: int
    ) -> tuple[str, FinishReason | None, str | int | None]:
        """The text that a choice's newest token completes, and whether and why it is the last one."""
        seq, params = choice.seq, choice.seq.params
        reason: FinishReason | None = None
        stop_reason: str | int | None = None
        early = num_output_tokens < params.min_tokens
        text = ""
        structure = choice.sampler.structure  # it comes before min_tokens
        if isinstance(structure, StructureState) and structure.broken:
            reason = FinishReason.ABORT
        elif token in choice.end_tokens and (not early or structure is not None):
            reason = FinishReason.STOP
            if token in params.stop_token_ids:
                stop_reason = token
            if not params.skip_special_tokens and params.include_stop_str_in_output:
                text = choice.detokenizer.push(token)
        else:
            text = choice.detokenizer.push(token)
            full = seq.num_prompt_tokens + num_output_tokens >= self.config.max_model_len
            if num_output_tokens >= params.max_tokens or full:
                reason = FinishReason.LENGTH
        if reason is not None:
            text += choice.detokenizer.flush()
        if not early:
            text = choice.stops.push(text, last=reason is not None)
            if choice.stops.found is not None:
                reason, stop_reason = FinishReason.STOP, choice.stops.found
        return text, reason, stop_reason

    @staticmethod
    def _delta(choice: Choice, text: str, tokens: tuple[Sampled, ...], stop_reason: str | int | None) -> Delta:
        scores, choice.prompt_logprobs = choice.prompt_logprobs, []
        return Delta(
            request_id=choice.request_id,
            index=choice.index,
            text=text,
            tokens=tokens,
            finish_reason=choice.seq.finish_reason,
            stop_reason=stop_reason,
            num_cached_tokens=choice.seq.num_cached_tokens,
            num_preemptions=choice.seq.num_preemptions,
            queue_seconds=choice.queue_seconds,
            prompt_logprobs=tuple(scores),
        )

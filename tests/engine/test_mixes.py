"""SmolLM2's greedy tokens are those of `transformers`, whatever runs beside them and however a step is put together.

`transformers` reads each prompt with our answer behind it. If at every place its likeliest token is the one we
gave, its greedy answer is ours, token by token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.greedy import END, prompts
from examples import smollm2
from kubeformer.contract.base import Location
from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.engine.core import EngineCore, Request, StepStats
from kubeformer_runtime.engine.cpu_runner import CpuRunner
from kubeformer_runtime.engine.llama_runner import LlamaRunner
from kubeformer_runtime.engine.plan import SchedulerConfig
from kubeformer_runtime.engine.runners import plan_runner
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.weights import load

TOKENS = 16
ECHO = "one, two, three, four, five, six, one, two, three, four, five, six, one, two,"


@dataclass(frozen=True)
class Model:
    """SmolLM2 in float32, prompts, and each one's answer alone."""

    runner: CpuRunner | LlamaRunner
    tokenizer: EngineTokenizer
    prompts: list[list[int]]
    alone: list[list[int]]

    def core(self, speculative_tokens: int = 0, num_blocks: int = 128, **limits: int) -> EngineCore:
        """An engine with an empty cache; fewer blocks than the runner has are a smaller cache."""
        self.runner.num_blocks = num_blocks
        config = replace(SchedulerConfig(max_model_len=256), **limits)
        return EngineCore(self.runner, config, self.tokenizer, frozenset({END}), speculative_tokens=speculative_tokens)


def run(
    core: EngineCore, asked: Sequence[list[int]], *, urgent: bool = False
) -> tuple[list[list[int]], list[StepStats]]:
    """Answers to all prompts at once; `urgent`: one comes with each step, more important than all before."""
    answers: list[list[int]] = [[] for _ in asked]
    stats = []
    params = SamplingParams(max_tokens=TOKENS, temperature=0.0, logprobs=0)
    coming = [Request(str(n), prompt, params, 0, priority=-n if urgent else 0) for n, prompt in enumerate(asked)]
    while core.has_work or coming:
        for _ in range(1 if urgent else len(coming)):
            if coming:
                core.add(coming.pop(0))
        output = core.step()
        stats.append(output.stats)
        for delta in output.deltas:
            answers[int(delta.request_id)] += [item.token for item in delta.tokens]
    core.check_books()
    return answers, stats


@pytest.fixture(scope="module")
def model() -> Model:
    """The model with the runner that the engine chooses for this machine."""
    torch.set_num_threads(1)
    directory = smollm2.ensure()
    loaded = load(directory, torch.float32)
    assert isinstance(loaded.config, LlamaConfig)
    where = Location(uri="pvc://models/smollm2", path=str(directory))
    settings = ServerSettings(name="m", namespace="default", model=where, served_names=["m"])
    plan = plan_runner(loaded.config, torch.float32, torch.device("cpu"), settings, 1)
    runner = plan.build(loaded.weights, num_blocks=128, max_length=256, reload=dict)
    tokenizer = EngineTokenizer.load(directory)
    asked = [*prompts(tokenizer, 50)[:41:7], tokenizer.encode(ECHO, add_special_tokens=False)]
    found = Model(runner, tokenizer, asked, [])
    core = found.core()
    for prompt in asked:
        found.alone.append(run(core, [prompt])[0][0])
        core.forget_prefixes()
    return found


def test_alone_the_tokens_are_those_of_transformers(model: Model) -> None:
    reference = AutoModelForCausalLM.from_pretrained(smollm2.ensure(), dtype=torch.float32).eval()
    for prompt, answer in zip(model.prompts, model.alone, strict=True):
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == answer


def test_together_in_one_batch_and_again_from_the_prefix_cache(model: Model) -> None:
    core = model.core()
    assert run(core, model.prompts)[0] == model.alone
    answers, stats = run(core, model.prompts)
    assert answers == model.alone
    assert sum(item.cached_tokens for item in stats) > 0


def test_in_chunks_while_more_important_ones_take_the_blocks_away(model: Model) -> None:
    core = model.core(num_blocks=17, max_num_batched_tokens=40, prefill_chunk=23)
    answers, stats = run(core, model.prompts, urgent=True)
    assert answers == model.alone
    assert sum(item.preemptions for item in stats) > 0


@pytest.mark.parametrize("drafts", [2, 6])
def test_with_drafts_which_save_steps(model: Model, drafts: int) -> None:
    answers, stats = run(model.core(speculative_tokens=drafts), model.prompts[-1:])
    assert answers == model.alone[-1:]
    assert sum(item.accepted_tokens for item in stats) > 0
    assert len(stats) < TOKENS


def test_with_everything_at_once(model: Model) -> None:
    core = model.core(speculative_tokens=4, num_blocks=26, max_num_batched_tokens=40, max_num_seqs=4)
    asked = [*model.prompts, *model.prompts]
    answers, stats = run(core, asked, urgent=True)
    assert answers == [*model.alone, *model.alone]
    for kind in ("cached_tokens", "preemptions", "accepted_tokens"):
        assert sum(getattr(item, kind) for item in stats) > 0, kind

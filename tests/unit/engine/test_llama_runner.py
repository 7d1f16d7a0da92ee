"""The runner computes what the plain model computes, however the work is cut, packed or mixed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.engine.batch import build_batch
from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.linear import PackedLinear
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.scheduler import Scheduled, SchedulerConfig, SchedulerState, advance, schedule
from kubeformer_runtime.engine.sequence import Sequence
from kubeformer_runtime.model.config import RopeScaling
from tests.unit.engine.builders import VOCABULARY, expected_logits, next_logits, runner_of, tiny_config
from tests.unit.model.builders import random_llama

MODEL = random_llama(tiny_config())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key_value_heads": 6},
        {"key_value_heads": 1},
        {"tied_embeddings": False},
        {"attention_bias": True, "mlp_bias": True},
        {"head_width": 16},
        {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 32)},
        {"qk_norm": True, "attention_bias": True, "output_bias": False, "sliding_window": 7, "first_sliding_layer": 1},
        {
            "norm": "LayerNorm",
            "positions": "Learned",
            "activation": "GELUTanh",
            "attention_bias": True,
            "mlp_bias": True,
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "plain"])
def test_logits_equal_the_plain_models_for_every_kind_of_decoder(changes: dict[str, object], pack: bool) -> None:
    model = random_llama(tiny_config(**changes))
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [3], list(range(30))]
    found = next_logits(runner_of(model, pack=pack), prompts)
    for prompt, logits in zip(prompts, found, strict=True):
        torch.testing.assert_close(logits, expected_logits(model, prompt), atol=2e-5, rtol=2e-5)


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40), min_size=1, max_size=5),
    shared=st.lists(st.integers(0, VOCABULARY - 1), max_size=20),
    budget=st.integers(1, 40),
    num_blocks=st.integers(20, 60),
)
def test_chunks_prefix_hits_mixed_batches_and_preemption_do_not_change_the_logits(
    prompts: list[list[int]], shared: list[int], budget: int, num_blocks: int
) -> None:
    """Four tokens for each prompt; the model's view of a sequence has to be that of the plain model every time."""
    runner = runner_of(MODEL, num_blocks=num_blocks)
    state = SchedulerState(BlockManager(num_blocks, runner.block_size))
    state.waiting.extend(Sequence(number, shared + prompt, SamplingParams()) for number, prompt in enumerate(prompts))
    config = SchedulerConfig(max_num_batched_tokens=budget, max_num_seqs=4)
    checked = 0
    while state.waiting or state.running:
        plan = schedule(state, config)
        logits = runner.execute(build_batch(plan.scheduled, runner.block_size, runner.dtype))
        sampling = [item.seq for item in plan.scheduled if item.samples]
        for seq, row in zip(sampling, logits, strict=True):
            torch.testing.assert_close(row, expected_logits(MODEL, seq.tokens), atol=3e-5, rtol=3e-5)
            checked += 1
        advance(plan, [[token] for token in logits.argmax(-1).tolist()])
        for seq in [seq for seq in state.running if seq.num_output_tokens >= 4]:
            state.running.remove(seq)
            state.blocks.free(seq)
    assert checked == 4 * len(prompts)


def test_bfloat16_is_near_the_float32_model() -> None:
    model = random_llama(tiny_config())
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    exact = expected_logits(model, tokens)
    found = next_logits(runner_of(model.to(torch.bfloat16)), [tokens])[0]
    assert (found - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_a_packed_linear_layer_is_a_linear_layer(dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator).to(dtype) for shape in ((40, 24), (40,), (rows, 24)))
    for offset in (None, bias):
        packed, plain = PackedLinear(weight, offset), PackedLinear(weight, offset, pack=False)
        torch.testing.assert_close(packed(x), plain(x), atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0.02)


def test_a_step_that_samples_nothing_gives_no_logits() -> None:
    runner = runner_of(MODEL)
    seq = Sequence(0, [1, 2, 3, 4, 5], SamplingParams())
    BlockManager(runner.num_blocks, runner.block_size).allocate(seq, 3)
    logits = runner.execute(build_batch([Scheduled(seq, 0, 3)], runner.block_size, runner.dtype))
    assert logits.shape == (0, VOCABULARY)

"""The kernels' runner computes what the plain model computes, and a row never notices what else is in the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.engine.batch import build_batch
from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.cpu_runner import CpuRunner, Quantization, block_bytes, unsupported
from kubeformer_runtime.engine.llama_runner import LlamaRunner
from kubeformer_runtime.engine.lora import LoraAdapter, LoraWeights
from kubeformer_runtime.engine.plan import Scheduled, SchedulerConfig
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.scheduler import SchedulerState, advance, schedule
from kubeformer_runtime.engine.sequence import Sequence
from kubeformer_runtime.model.config import LlamaConfig, RopeScaling
from kubeformer_runtime.model.llama import Llama
from kubeformer_runtime.model.weights import tensors_of
from tests.unit.engine.builders import VOCABULARY, expected_logits, next_logits, tiny_config
from tests.unit.model.builders import random_llama

MODEL = random_llama(tiny_config())
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [3], list(range(30))]


def runner_of(
    model: Llama,
    dtype: torch.dtype = torch.float32,
    *,
    num_blocks: int = 32,
    quantization: Quantization = "None",
    threads: int = 1,
) -> CpuRunner:
    """The kernels' version of a model."""

    def weights() -> dict[str, torch.Tensor]:
        return {name: tensor.to(dtype, copy=True) for name, tensor in tensors_of(model).items()}

    return CpuRunner(
        model.config,
        weights(),
        num_blocks=num_blocks,
        quantization=quantization,
        threads=threads,
        alone_bytes=0,
        reload=weights,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key_value_heads": 6},
        {"key_value_heads": 1},
        {"tied_embeddings": False},
        {"attention_bias": True, "mlp_bias": True},
        {"head_width": 16},
        {"head_width": 80, "mlp_width": 40},
        {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 32)},
        {"family": "qwen2", "attention_bias": True, "output_bias": False},
        {"family": "qwen3", "qk_norm": True},
        {"family": "mistral", "sliding_window": 7},
        {"sliding_window": 20, "first_sliding_layer": 1},
    ],
    ids=str,
)
def test_logits_equal_the_plain_models_for_every_kind_of_decoder(changes: dict[str, object]) -> None:
    model = random_llama(tiny_config(**changes))
    for prompt, logits in zip(PROMPTS, next_logits(runner_of(model), PROMPTS), strict=True):
        torch.testing.assert_close(logits, expected_logits(model, prompt), atol=2e-5, rtol=2e-5)


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40), min_size=1, max_size=5),
    shared=st.lists(st.integers(0, VOCABULARY - 1), max_size=20),
    budget=st.integers(1, 40),
    num_blocks=st.integers(5, 15),
)
def test_chunks_prefix_hits_mixed_batches_and_preemption_change_no_bit_of_the_logits(
    prompts: list[list[int]], shared: list[int], budget: int, num_blocks: int
) -> None:
    """Four tokens for each prompt; each row has to be what the same tokens give in one step of their own."""
    runner, alone = runner_of(MODEL, num_blocks=num_blocks), runner_of(MODEL, num_blocks=num_blocks)
    state = SchedulerState(BlockManager(num_blocks, runner.block_size))
    state.waiting.extend(Sequence(number, shared + prompt, SamplingParams()) for number, prompt in enumerate(prompts))
    config = SchedulerConfig(max_num_batched_tokens=budget, max_num_seqs=4)
    checked = 0
    while state.waiting or state.running:
        plan = schedule(state, config)
        logits = runner.execute(build_batch(plan.scheduled, runner.block_size, runner.dtype))
        sampling = [item.seq for item in plan.scheduled if item.samples]
        for seq, row in zip(sampling, logits, strict=True):
            assert torch.equal(row, next_logits(alone, [seq.tokens])[0])
            checked += 1
        advance(plan, [[token] for token in logits.argmax(-1).tolist()])
        for seq in [seq for seq in state.running if seq.num_output_tokens >= 4]:
            state.running.remove(seq)
            state.blocks.free(seq)
    assert checked == 4 * len(prompts)


@pytest.mark.parametrize(
    ("dtype", "quantization", "most"),
    [
        (torch.bfloat16, "None", 0.02),
        (torch.float32, "Int8", 0.04),
        (torch.bfloat16, "Int8", 0.04),
        (torch.bfloat16, "Int4", 0.25),
    ],
    ids=str,
)
def test_fewer_bits_stay_near_the_float32_model(dtype: torch.dtype, quantization: Quantization, most: float) -> None:
    exact = expected_logits(MODEL, PROMPTS[0])
    found = next_logits(runner_of(MODEL, dtype, quantization=quantization), PROMPTS)[0]
    assert (found - exact).norm() / exact.norm() < most


def test_the_number_of_threads_changes_no_bit() -> None:
    for dtype, quantization in ((torch.float32, "None"), (torch.bfloat16, "Int8")):
        one, three = (runner_of(MODEL, dtype, quantization=quantization, threads=count) for count in (1, 3))
        for _ in range(3):
            pairs = zip(next_logits(one, PROMPTS), next_logits(three, PROMPTS), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_several_rows_of_one_sequence_can_be_sampled() -> None:
    runner = runner_of(MODEL)
    seq = Sequence(0, PROMPTS[0], SamplingParams(prompt_logprobs=1))
    BlockManager(runner.num_blocks, runner.block_size).allocate(seq, len(PROMPTS[0]))
    rows = runner.execute(build_batch([Scheduled(seq, 0, len(PROMPTS[0]))], runner.block_size, runner.dtype))
    assert len(rows) == len(PROMPTS[0])
    for length, row in enumerate(rows, 1):
        torch.testing.assert_close(row, expected_logits(MODEL, PROMPTS[0][:length]), atol=2e-5, rtol=2e-5)


def random_adapter(config: LlamaConfig, rank: int, seed: int) -> LoraAdapter:
    """Something on every linear layer."""
    generator = torch.Generator().manual_seed(seed)
    heads, shared = config.heads * config.head_width, config.key_value_heads * config.head_width
    sizes = {
        **{f"self_attn.{name}_proj": (config.width, out) for name, out in (("q", heads), ("k", shared), ("v", shared))},
        "self_attn.o_proj": (heads, config.width),
        **{f"mlp.{name}_proj": (config.width, config.mlp_width) for name in ("gate", "up")},
        "mlp.down_proj": (config.mlp_width, config.width),
    }
    return LoraAdapter(
        rank,
        {
            (layer, name): LoraWeights(
                torch.randn(rank, wide, generator=generator), torch.randn(out, rank, generator=generator), 0.05
            )
            for layer in range(config.layers)
            for name, (wide, out) in sizes.items()
        },
    )


def test_rows_with_adapters_equal_the_torch_runners_and_outlive_a_sleep() -> None:
    weights = {name: tensor.clone() for name, tensor in tensors_of(MODEL).items()}
    torch_runner, runner = LlamaRunner(MODEL.config, weights, num_blocks=32), runner_of(MODEL)
    for key, rank in (("a", 2), ("b", 5)):
        for each in (torch_runner, runner):
            each.add_adapter(key, random_adapter(MODEL.config, rank, rank))
    for prompts, keys in ((PROMPTS, ("a", None, "b")), ([[7]], ("b",)), ([[7, 8, 9]], (None,))):
        expected = next_logits(torch_runner, prompts, keys)
        for found, wanted in zip(next_logits(runner, prompts, keys), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=5e-5, rtol=5e-5)
    before = next_logits(runner, PROMPTS, ("b", "b", None))
    runner.remove_adapter("a")
    runner.release()
    runner.restore()
    after = next_logits(runner, PROMPTS, ("b", "b", None))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_released_memory_cannot_be_used() -> None:
    runner = runner_of(MODEL)
    runner.release()
    with pytest.raises(RuntimeError, match="released"):
        next_logits(runner, PROMPTS)


def test_a_step_that_samples_nothing_gives_no_logits_and_a_foreign_token_is_refused() -> None:
    runner = runner_of(MODEL)
    seq = Sequence(0, [1, 2, 3, 4, 5], SamplingParams())
    BlockManager(runner.num_blocks, runner.block_size).allocate(seq, 3)
    assert runner.execute(build_batch([Scheduled(seq, 0, 3)], 16, runner.dtype)).shape == (0, VOCABULARY)
    with pytest.raises(ValueError, match="token id"):
        next_logits(runner, [[VOCABULARY]])


def test_what_a_token_reads_is_counted() -> None:
    runner = runner_of(MODEL, torch.bfloat16)
    config = MODEL.config
    a_token = config.layers * 2 * config.key_value_heads * 16 * 2  # keys and values in bfloat16, 8 wide, padded to 16
    assert block_bytes(config, torch.bfloat16) == 16 * a_token
    assert runner.bytes_per_token(100) - runner.bytes_per_token(0) == 100 * a_token
    assert runner.bytes_per_token(0) >= 2 * sum(
        tensor.numel() for tensor in tensors_of(MODEL).values() if tensor.dim() > 1
    )


def test_other_models_and_devices_are_left_to_torch() -> None:
    cpu = torch.device("cpu")
    assert unsupported(tiny_config(), torch.float32, cpu) is None
    assert unsupported(tiny_config(), torch.float16, cpu) is not None
    assert unsupported(tiny_config(), torch.float32, torch.device("cuda")) is not None
    assert "LayerNorm" in str(unsupported(tiny_config(norm="LayerNorm"), torch.float32, cpu))

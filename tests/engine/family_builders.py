"""Tiny random decoders of every family, made by `transformers` itself, and a way to run one through the engine.

Every parameter is far from zero, norms and biases too, so that leaving one out shows.
"""

import copy
import json
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from kubeformer_runtime.engine.batch import build_batch
from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.cpu_runner import BLOCK_SIZE, CpuRunner
from kubeformer_runtime.engine.llama_runner import LlamaRunner
from kubeformer_runtime.engine.plan import SchedulerConfig
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.scheduler import SchedulerState, advance, enqueue, finish, schedule
from kubeformer_runtime.engine.sequence import FinishReason, Sequence
from kubeformer_runtime.model import config as ours
from kubeformer_runtime.model import load

torch.set_num_threads(1)
VOCABULARY = 120
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_inner": 72,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Name: the model's class, its config's class, and fields.
FAMILIES: dict[str, tuple[type[PreTrainedModel], type, dict[str, Any]]] = {
    "Llama": (LlamaForCausalLM, LlamaConfig, COMMON | {"rope_parameters": ROPE_LLAMA3, "tie_word_embeddings": False}),
    "Llama with biases": (LlamaForCausalLM, LlamaConfig, COMMON | {"attention_bias": True, "mlp_bias": True}),
    "SmolLM": (LlamaForCausalLM, LlamaConfig, COMMON | {"tie_word_embeddings": True, "num_key_value_heads": 3}),
    "Mistral": (MistralForCausalLM, MistralConfig, COMMON | {"sliding_window": 9, "head_dim": 12}),
    "Mistral without window": (MistralForCausalLM, MistralConfig, COMMON | {"sliding_window": None}),
    "Qwen2": (Qwen2ForCausalLM, Qwen2Config, COMMON | {"tie_word_embeddings": True}),
    "Qwen2 with windows": (
        Qwen2ForCausalLM,
        Qwen2Config,
        COMMON | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "Qwen3": (Qwen3ForCausalLM, Qwen3Config, COMMON | {"head_dim": 16, "tie_word_embeddings": True}),
    "GPT-2": (GPT2LMHeadModel, GPT2Config, GPT2),
    "GPT-2 untied": (GPT2LMHeadModel, GPT2Config, GPT2 | {"tie_word_embeddings": False, "activation_function": "relu"}),
}


NATIVE = tuple(name for name in FAMILIES if not name.startswith("GPT-2"))  # that the CPU's own kernels run
Runner = LlamaRunner | CpuRunner


def runner_of(directory: Path, kind: str, *, tokens: int = 800) -> Runner:
    """A model's runner, "PyTorch" or "kernels", with a cache for so many tokens."""
    config, weights = config_of(directory), load(directory).weights
    if kind == "kernels":
        return CpuRunner(config, weights, num_blocks=-(-tokens // BLOCK_SIZE))
    return LlamaRunner(config, weights, num_blocks=tokens // 4, block_size=4)


def their_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a family."""
    model_class, config_class, fields = FAMILIES[name]
    torch.manual_seed(seed)
    model = model_class(config_class(**fields))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.6 if parameter.dim() < 2 else 0.0, 0.25)
    model.config._attn_implementation = "eager"
    return model.eval()


def write_family(directory: Path, name: str) -> PreTrainedModel:
    """The model, and its directory as `transformers` writes it."""
    model = their_model(name)
    model.save_pretrained(directory)
    return model


@dataclass(frozen=True)
class Played:
    """What came out for one prompt: all tokens, and the logits that each generated token was chosen from."""

    prompt: list[int]
    tokens: list[int]
    logits: list[torch.Tensor]


def play(
    runner: Runner,
    prompts: SequenceOf[list[int]],
    *,
    adapters: SequenceOf[str | None] | None = None,
    length: int = 6,
    budget: int = 64,
    max_num_seqs: int = 4,
) -> list[Played]:
    """Greedy answers of `length` tokens, through scheduler, prefix cache and preemption, all prompts at once."""
    state = SchedulerState(BlockManager(runner.num_blocks, runner.block_size))
    sequences = []
    for number, prompt in enumerate(prompts):
        seq = Sequence(number, list(prompt), SamplingParams(), adapter=adapters[number] if adapters else None)
        sequences.append(seq)
        enqueue(state, seq)
    logits: dict[int, list[torch.Tensor]] = {seq.seq_id: [] for seq in sequences}
    config = SchedulerConfig(max_num_batched_tokens=budget, max_num_seqs=max_num_seqs)
    while any(seq.finish_reason is None for seq in sequences):
        plan = schedule(state, config)
        rows = runner.execute(build_batch(plan.scheduled, runner.block_size, runner.dtype))
        sampling = [item.seq for item in plan.scheduled if item.samples]
        for seq, row in zip(sampling, rows, strict=True):
            logits[seq.seq_id].append(row)
        advance(plan, [[token] for token in rows.argmax(-1).tolist()])
        for seq in sampling:
            if seq.num_output_tokens == length:
                finish(state, seq, FinishReason.LENGTH)
    return [Played(seq.prompt, seq.tokens, logits[seq.seq_id]) for seq in sequences]


@torch.inference_mode()
def assert_as_transformers(model: PreTrainedModel, played: Played) -> None:
    """Logits within 1e-4 of theirs at every generated token, and the token the likeliest by theirs."""
    theirs = model(torch.tensor([played.tokens[:-1]])).logits[0, len(played.prompt) - 1 :]
    torch.testing.assert_close(torch.stack(played.logits), theirs, atol=1e-4, rtol=0)
    assert played.tokens[len(played.prompt) :] == theirs.argmax(-1).tolist()


def config_of(directory: Path) -> ours.LlamaConfig:
    """Our reading of a decoder's config.json."""
    config = ours.read_config(directory)
    assert isinstance(config, ours.LlamaConfig)
    return config


def write_adapter(
    directory: Path, model: PreTrainedModel, targets: SequenceOf[str], *, rank: int = 4, seed: int = 0, **fields: Any
) -> PreTrainedModel:
    """A random LoRA adapter in PEFT's layout for some modules of a model; returns a copy that it is merged into.

    PEFT itself is not needed: W becomes W + scale · B·A, transposed where the layer is GPT-2's Conv1D.
    """
    merged = copy.deepcopy(model)
    document = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 6, "bias": "none", **fields}
    document["target_modules"] = list(targets)
    scale = document["lora_alpha"] / (rank**0.5 if document.get("use_rslora") else rank)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in merged.named_modules():
        if name.rsplit(".", 1)[-1] not in targets:
            continue
        conv = isinstance(module, Conv1D)
        outer, inner = module.weight.shape[::-1] if conv else module.weight.shape
        a_RI = torch.randn(rank, inner, generator=generator) * 0.2
        b_OR = torch.randn(outer, rank, generator=generator) * 0.2
        change_OI = scale * (b_OR @ a_RI)
        module.weight.data += change_OI.T if conv else change_OI
        tensors[f"base_model.model.{name}.lora_A.weight"] = a_RI
        tensors[f"base_model.model.{name}.lora_B.weight"] = b_OR
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(document))
    return merged

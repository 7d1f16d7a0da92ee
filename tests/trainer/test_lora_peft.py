"""Adapters written here load in `peft` and in our engine with the logits of training; those of `peft` load here."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from kubeformer_runtime.engine.lora import read_adapter
from kubeformer_runtime.model import load
from kubeformer_runtime.model.llama import Llama
from kubeformer_runtime.model.lora import Lora, Target, add_lora, lora_layers, merged_weights
from kubeformer_runtime.model.lora_files import copy_adapter, write_adapter
from kubeformer_runtime.model.weights import build, save, shapes_of
from tests.engine.family_builders import VOCABULARY, play, runner_of, write_family

BOTH: tuple[Target, ...] = ("Attention", "MLP")
CASES = [
    ("SmolLM", ("Attention",), "kernels"),
    ("Llama with biases", BOTH, "PyTorch"),
    ("Qwen3", BOTH, "kernels"),
    ("GPT-2", ("Attention",), "PyTorch"),
    ("GPT-2", BOTH, "PyTorch"),
]
TOKENS = torch.randint(0, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))


def trained(base: Path, lora: Lora) -> Llama:
    """A decoder of ours with adapters that have learned something."""
    network = load(base).module()
    assert isinstance(network, Llama)
    torch.manual_seed(0)
    add_lora(network, lora)
    for _, layer in lora_layers(network):
        nn.init.normal_(layer.lora_B, 0.0, 0.2)
    return network


@torch.inference_mode()
def logits(model: Llama | PreTrainedModel | PeftModel, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    found = model(tokens)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize(("family", "targets", "kind"), CASES, ids=str)
def test_what_was_trained_is_served_alike_everywhere(
    tmp_path: Path, family: str, targets: tuple[Target, ...], kind: str
) -> None:
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    write_family(base, family)
    network = trained(base, Lora(rank=4, alpha=6.0, targets=targets))
    expected = logits(network)

    adapter.mkdir()
    write_adapter(adapter, network, str(base))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    torch.testing.assert_close(logits(theirs), expected, atol=1e-4, rtol=0)
    assert theirs.peft_config["default"].base_model_name_or_path == str(base)

    merged.mkdir()
    weights = merged_weights(network)
    save(merged, build(network.config, {name: weights[name] for name in shapes_of(network.config)}))
    whole = AutoModelForCausalLM.from_pretrained(merged).eval()
    torch.testing.assert_close(logits(whole), expected, atol=1e-4, rtol=0)

    runner = runner_of(base, kind, tokens=200)
    runner.add_adapter("mine", read_adapter(adapter, runner.config))
    prompts = TOKENS.tolist()
    for played in play(runner, prompts, adapters=["mine"] * len(prompts)):
        ours = logits(network, torch.tensor([played.tokens[:-1]]))[0, len(played.prompt) - 1 :]
        torch.testing.assert_close(torch.stack(played.logits), ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_wrote_goes_on_here(tmp_path: Path, rslora: bool) -> None:
    base = write_family(tmp_path / "base", "SmolLM")
    config = LoraConfig(
        r=4, lora_alpha=10, target_modules=["q_proj", "o_proj"], use_rslora=rslora, task_type="CAUSAL_LM"
    )
    theirs = get_peft_model(base, config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, 0.0, 0.2)
    theirs.save_pretrained(tmp_path / "adapter")
    network = load(tmp_path / "base").module()
    assert isinstance(network, Llama)
    adapter = read_adapter(tmp_path / "adapter", network.config)
    add_lora(network, Lora(rank=adapter.rank, alpha=16.0))
    copy_adapter(network, adapter)
    torch.testing.assert_close(logits(network), logits(theirs), atol=1e-4, rtol=0)

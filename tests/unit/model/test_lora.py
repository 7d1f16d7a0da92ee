"""LoRA by module swap: nothing changes at first, A and B alone learn, and merged weights answer alike."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.llama import Llama
from kubeformer_runtime.model.lora import Lora, LoraLinear, Target, add_lora, has_lora, lora_layers, merged_weights
from kubeformer_runtime.model.lora_files import copy_adapter, read_adapter, write_adapter
from kubeformer_runtime.model.weights import build, tensors_of
from tests.unit.model.builders import (
    classifier_config,
    llama_config,
    random_classifier,
    random_llama,
    random_tokens,
)

BOTH: tuple[Target, ...] = ("Attention", "MLP")


def adapted(lora: Lora, seed: int = 0, **changes: object) -> Llama:
    """A random decoder whose adapters have learned something."""
    network = random_llama(llama_config(**changes), seed)
    add_lora(network, lora)
    for _, layer in lora_layers(network):
        nn.init.normal_(layer.lora_B, 0.0, 0.3)
    return network


def logits(network: nn.Module, seed: int = 1) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network(random_tokens(llama_config(), 2, 9, seed))
    return found


def test_a_fresh_adapter_changes_no_answer_and_only_its_matrices_learn() -> None:
    network = random_llama(llama_config())
    before = logits(network)
    assert not has_lora(network)
    add_lora(network, Lora(rank=3, targets=("Attention",)))
    torch.testing.assert_close(logits(network), before, rtol=0, atol=0)
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert learning == {
        f"model.layers.{layer}.self_attn.{part}_proj.lora_{side}"
        for layer in (0, 1)
        for part in "qkvo"
        for side in "AB"
    }
    network.train()(random_tokens(llama_config(), 2, 9)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (name in learning)
        if name.endswith("lora_B"):
            assert parameter.grad is not None
            assert bool((parameter.grad != 0).any())


def test_what_a_layer_computes_is_the_formula() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(8, 6)
    layer = LoraLinear(linear, Lora(rank=2, alpha=6.0))
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 8)
    expected = x @ (linear.weight + 3.0 * layer.lora_B @ layer.lora_A).T + linear.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("targets", [("Attention",), ("MLP",), BOTH])
@pytest.mark.parametrize("family", ["Llama", "GPT-2"])
def test_merged_weights_answer_as_the_adapters_do(targets: tuple[Target, ...], family: str) -> None:
    changes = {} if family == "Llama" else GPT2
    network = adapted(Lora(rank=4, alpha=5.0, targets=targets), **changes)
    weights = merged_weights(network)
    weights.pop("lm_head.weight") if network.config.tied_embeddings else None
    assert weights.keys() == tensors_of(random_llama(network.config)).keys()
    torch.testing.assert_close(logits(build(network.config, weights)), logits(network), rtol=1e-4, atol=1e-4)


GPT2: dict[str, object] = {
    "family": "gpt2",
    "norm": "LayerNorm",
    "positions": "Learned",
    "activation": "GELUTanh",
    "key_value_heads": 6,
    "attention_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "tied_embeddings": True,
}


def test_merge_and_unmerge_give_back_what_was_there() -> None:
    network = adapted(Lora(rank=4, targets=BOTH))
    answers, weights = logits(network), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for _, layer in lora_layers(network):
        layer.merge()
        layer.merge()  # a second time changes nothing
    torch.testing.assert_close(logits(network), answers, rtol=1e-4, atol=1e-4)
    for _, layer in lora_layers(network):
        layer.unmerge()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["Int8", "NF4"])
def test_over_quantised_weights_adapters_merge_into_those_of_the_base(kind: str) -> None:
    plain = random_llama(llama_config())
    base = dict(tensors_of(plain))
    network = random_llama(llama_config())
    add_lora(network, Lora(rank=4), kind)  # type: ignore[arg-type]
    assert not any(
        "mlp" in name and "weight" in name for name in network.state_dict()
    )  # quantised without adapters too
    for _, layer in lora_layers(network):
        nn.init.normal_(layer.lora_B, 0.0, 0.3)
    merged = merged_weights(network, base)
    assert merged.keys() == plain.state_dict().keys()
    for name, layer in lora_layers(network):
        torch.testing.assert_close(merged[f"{name}.weight"], base[f"{name}.weight"] + layer.change())
        with pytest.raises(ModelError, match="quantised"):
            layer.merge()
    with pytest.raises(ModelError, match="has to come from the base"):
        merged_weights(network)


def test_a_classifier_takes_adapters_too() -> None:
    network = random_classifier(classifier_config())
    add_lora(network, Lora(rank=2, targets=BOTH))
    assert {name.rsplit(".", 1)[-1] for name, _ in lora_layers(network)} >= {"q_proj", "up_proj"}
    with pytest.raises(ModelError, match="publish the merged model"):
        write_adapter(Path("nowhere"), network, "base")


@pytest.mark.parametrize("changes", [{}, GPT2], ids=["Llama", "GPT-2"])
@pytest.mark.parametrize("targets", [("Attention",), BOTH])
def test_an_adapter_in_peft_s_layout_is_read_back(
    tmp_path: Path, changes: dict[str, object], targets: tuple[Target, ...]
) -> None:
    network = adapted(Lora(rank=2, alpha=3.0, targets=targets), **changes)
    write_adapter(tmp_path, network, "/models/base")
    document = json.loads((tmp_path / "adapter_config.json").read_text())
    assert document["base_model_name_or_path"] == "/models/base"
    assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "adapter_model.safetensors").values())
    adapter = read_adapter(tmp_path, network.config)
    other = random_llama(network.config)
    add_lora(other, Lora(rank=adapter.rank, alpha=1.0, targets=targets))
    copy_adapter(other, adapter)
    torch.testing.assert_close(logits(other), logits(network), rtol=1e-4, atol=1e-4)


def test_dropout_is_of_what_adapters_read_and_only_while_training() -> None:
    network = adapted(Lora(rank=4, dropout=0.5))
    torch.testing.assert_close(logits(network), logits(network))
    network.train()
    assert not torch.equal(logits(network), logits(network))


@pytest.mark.parametrize(
    ("lora", "why"),
    [(Lora(rank=0), "rank"), (Lora(dropout=1.0), "dropout"), (Lora(targets=()), "targets")],
)
def test_settings_without_sense_are_refused_by_name(lora: Lora, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        add_lora(random_llama(llama_config()), lora)


def test_a_network_without_such_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no linear layer"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), Lora())

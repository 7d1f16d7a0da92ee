"""Every family over the paged cache equals `transformers`, alone and in any mix; checkpoints in every disguise."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from kubeformer_runtime.model import load
from kubeformer_runtime.model.weights import save
from tests.engine.family_builders import (
    FAMILIES,
    NATIVE,
    VOCABULARY,
    assert_as_transformers,
    config_of,
    play,
    runner_of,
    write_family,
)

CASES = [(family, "PyTorch") for family in FAMILIES] + [(family, "kernels") for family in NATIVE]
every_case = pytest.mark.parametrize(("family", "kind"), CASES)
SHARED = [(7 * i + 3) % VOCABULARY for i in range(25)]
PROMPTS = [[5], [*SHARED], [*SHARED, 9, 4], [*SHARED[:17], 50, 51], list(range(40)), [3, 1, 4, 1, 5, 9, 2, 6]]


@every_case
def test_each_prompt_alone(tmp_path: Path, family: str, kind: str) -> None:
    model = write_family(tmp_path, family)
    runner = runner_of(tmp_path, kind)
    for prompt in PROMPTS:
        assert_as_transformers(model, play(runner, [prompt])[0])


@every_case
def test_all_together_in_chunks_with_shared_prefixes_and_too_few_blocks(tmp_path: Path, family: str, kind: str) -> None:
    model = write_family(tmp_path, family)
    for played in play(runner_of(tmp_path, kind, tokens=96), PROMPTS, budget=13):
        assert_as_transformers(model, played)


@pytest.mark.parametrize("family", ["Mistral", "Qwen3", "GPT-2"])
def test_the_plain_module_is_theirs_too_and_what_it_saves_they_read(tmp_path: Path, family: str) -> None:
    model = write_family(tmp_path / "theirs", family)
    loaded = load(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save(tmp_path / "ours", loaded.module())
    again, found = type(model).from_pretrained(tmp_path / "ours", dtype=torch.float32, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    tokens = torch.tensor([PROMPTS[4]])
    with torch.inference_mode():
        expected = model(tokens).logits
        torch.testing.assert_close(loaded.module()(tokens), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(again(tokens).logits, expected, atol=1e-4, rtol=0)


def test_the_first_gpt2s_names_without_prefix_and_with_causal_masks(tmp_path: Path) -> None:
    model = write_family(tmp_path, "GPT-2")
    stored = load_file(tmp_path / "model.safetensors")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    weights |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in range(3)}
    save_file(weights, tmp_path / "model.safetensors")
    assert_as_transformers(model, play(runner_of(tmp_path, "PyTorch"), [PROMPTS[3]])[0])


def test_a_config_without_architectures_goes_by_its_model_type(tmp_path: Path) -> None:
    write_family(tmp_path, "Qwen2")
    document = json.loads((tmp_path / "config.json").read_text())
    del document["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert config_of(tmp_path).family == "qwen2"


@settings(max_examples=15)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30), min_size=1, max_size=5),
    shared=st.lists(st.integers(0, VOCABULARY - 1), max_size=20),
    budget=st.integers(1, 40),
    tokens=st.integers(64, 240),
    case=st.sampled_from(CASES),
)
def test_any_mix_of_batch_chunk_prefix_hit_and_preemption(
    families: dict[str, tuple[PreTrainedModel, Path]],
    prompts: list[list[int]],
    shared: list[int],
    budget: int,
    tokens: int,
    case: tuple[str, str],
) -> None:
    model, directory = families[case[0]]
    runner = runner_of(directory, case[1], tokens=tokens)
    for played in play(runner, [shared + prompt for prompt in prompts], budget=budget, length=4):
        assert_as_transformers(model, played)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PreTrainedModel, Path]]:
    """Each family's model and directory."""
    directories = {name: tmp_path_factory.mktemp("family") for name in FAMILIES}
    return {name: (write_family(directory, name), directory) for name, directory in directories.items()}

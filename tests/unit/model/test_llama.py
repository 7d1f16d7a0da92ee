"""Our Llama is Hugging Face's Llama: same files, same logits, both ways."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from kubeformer_runtime.model import ModelError, load, read_config
from kubeformer_runtime.model.config import RopeScaling
from kubeformer_runtime.model.weights import save
from tests.unit.model.builders import llama_config, random_llama, random_tokens

KINDS = {
    "plain": {"tied_embeddings": False, "key_value_heads": 6},
    "grouped queries, tied embeddings": {},
    "biases, a head wider than width / heads": {"attention_bias": True, "mlp_bias": True, "head_width": 10},
    "another rotary base": {"rope_theta": 100000.0},
    "linear scaling": {"rope_scaling": RopeScaling("linear", 2.0)},
    "llama3 scaling": {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_length=16)},
}


def assert_same_logits(ours: torch.nn.Module, theirs: LlamaForCausalLM, token_BT: torch.Tensor) -> None:
    """Equal up to rounding in float32."""
    with torch.no_grad():
        torch.testing.assert_close(ours(token_BT), theirs(token_BT).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_transformers_reads_what_we_save_and_computes_the_same_logits(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    config = llama_config(**changes)
    ours = random_llama(config)
    save(tmp_path, ours)
    theirs, found = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert_same_logits(ours, theirs, random_tokens(config, rows=3, length=40))


@pytest.mark.parametrize("tied", [True, False])
def test_we_read_what_transformers_saves_also_in_shards(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        TheirConfig(
            vocab_size=89,
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
            initializer_range=0.3,
        )
    ).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load(tmp_path)
    assert loaded.config.rope_theta == 50000.0
    assert ("lm_head.weight" in loaded.weights) != tied
    assert_same_logits(loaded.module(), theirs, random_tokens(loaded.config, rows=2, length=30))


def test_a_config_of_transformers_4_means_the_same_as_one_of_5(tmp_path: Path) -> None:
    config = llama_config(rope_theta=500000.0, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
    document = config.to_json()
    parameters = document.pop("rope_parameters")
    document["rope_scaling"] = {name: value for name, value in parameters.items() if name != "rope_theta"}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert read_config(tmp_path) == config


def test_saving_and_loading_changes_no_bit(tmp_path: Path) -> None:
    ours = random_llama(llama_config())
    save(tmp_path, ours)
    loaded = load(tmp_path)
    assert loaded.config == ours.config
    for name, tensor in loaded.module().state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name


def test_weights_come_in_the_type_asked_for(tmp_path: Path) -> None:
    save(tmp_path, random_llama(llama_config()))
    assert {tensor.dtype for tensor in load(tmp_path, torch.bfloat16).weights.values()} == {torch.bfloat16}


def test_a_token_never_sees_the_ones_after_it() -> None:
    config = llama_config()
    model, token_BT = random_llama(config), random_tokens(config, rows=1, length=20)
    changed_BT = token_BT.clone()
    changed_BT[0, 12:] = 5
    with torch.no_grad():
        before, after = model(token_BT), model(changed_BT)
    torch.testing.assert_close(before[0, :12], after[0, :12])
    assert not torch.allclose(before[0, 12:], after[0, 12:])


def test_generation_config_knows_better_when_an_answer_ends(tmp_path: Path) -> None:
    save(tmp_path, random_llama(llama_config()))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    config = read_config(tmp_path)
    assert config.eos_token_ids == (2, 7)  # type: ignore[union-attr]


class TestErrorsNameWhatIsWrong:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        save(tmp_path, random_llama(llama_config()))
        return tmp_path

    def alter(self, directory: Path, **changes: object) -> None:
        document = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(document | changes))

    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no model directory") as caught:
            load(tmp_path / "nowhere")
        assert caught.value.reason == "ModelNotFound"

    def test_no_weights(self, directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"neither model.safetensors nor") as caught:
            load(directory)
        assert caught.value.reason == "ModelNotFound"

    def test_weights_cut_short(self, directory: Path) -> None:
        content = (directory / "model.safetensors").read_bytes()
        (directory / "model.safetensors").write_bytes(content[: len(content) // 2])
        with pytest.raises(ModelError, match=r"model.safetensors is damaged"):
            load(directory)

    def test_an_index_that_names_a_shard_which_is_not_there(self, directory: Path) -> None:
        (directory / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00002.safetensors"}}')
        with pytest.raises(ModelError, match=r"index.json names model-00002.safetensors, which is not there") as caught:
            load(directory)
        assert caught.value.reason == "ModelNotFound"

    def test_an_index_that_maps_nothing(self, directory: Path) -> None:
        (directory / "model.safetensors.index.json").write_text('{"weight_map": []}')
        with pytest.raises(ModelError, match="has no weight_map"):
            load(directory)

    def test_weights_that_are_pickled(self, directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
        with pytest.raises(ModelError, match=r"pytorch_model.bin, a pickle, which can run code"):
            load(directory)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
    def test_numbers_that_are_none(self, directory: Path, value: float) -> None:
        weights = load_file(directory / "model.safetensors")
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        save_file(weights, directory / "model.safetensors")
        with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight holds numbers that are not finite"):
            load(directory)

    def test_integers_where_real_numbers_have_to_be(self, directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
        save_file(weights, directory / "model.safetensors")
        with pytest.raises(ModelError, match=r"model.norm.weight is stored as int8"):
            load(directory)

    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_a_cut_or_a_flipped_byte_anywhere_is_a_sentence_or_a_number(
        self, directory: Path, data: st.DataObject
    ) -> None:
        if not (directory / "original").exists():
            (directory / "model.safetensors").rename(directory / "original")
        content = bytearray((directory / "original").read_bytes())
        header = 8 + int.from_bytes(content[:8], "little")
        where = data.draw(st.integers(0, header) | st.integers(0, len(content) - 1))
        if cut := data.draw(st.booleans()):
            del content[where:]
        else:
            content[where] ^= 1 << data.draw(st.integers(0, 7))
        (directory / "model.safetensors").write_bytes(content)
        try:
            load(directory)
        except ModelError:
            return
        assert not cut

    def test_a_tensor_too_few(self, directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, directory / "model.safetensors")
        with pytest.raises(ModelError, match=r"lack model.norm.weight"):
            load(directory)

    def test_a_layer_too_many(self, directory: Path) -> None:
        self.alter(directory, num_hidden_layers=1)
        with pytest.raises(ModelError, match=r"hold model.layers.1.* and 6 more, which config.json does not know"):
            load(directory)

    def test_a_tensor_too_few_of_a_gpt2_has_the_name_that_is_in_the_file(self, tmp_path: Path) -> None:
        config = llama_config(
            **{"family": "gpt2", "norm": "LayerNorm", "positions": "Learned", "activation": "GELUTanh"},
            **{"attention_bias": True, "mlp_bias": True, "key_value_heads": 6},
        )
        save(tmp_path, random_llama(config))
        weights = load_file(tmp_path / "model.safetensors")
        del weights["transformer.h.1.attn.c_attn.weight"]
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=r"lack transformer.h.1.attn.c_attn.weight, which"):
            load(tmp_path)

    def test_another_shape(self, directory: Path) -> None:
        self.alter(directory, vocab_size=96)
        with pytest.raises(ModelError, match=r"embed_tokens.weight has shape \(97, 48\).*\(96, 48\)"):
            load(directory)

    def test_another_architecture(self, directory: Path) -> None:
        self.alter(directory, architectures=["BertModel"])
        with pytest.raises(ModelError, match=r"BertModel.*supported are LlamaForCausalLM, Mistral"):
            load(directory)

    def test_another_activation(self, directory: Path) -> None:
        self.alter(directory, hidden_act="gelu")
        with pytest.raises(ModelError, match="hidden_act is 'gelu'"):
            load(directory)

    def test_a_rotary_scaling_nobody_here_knows(self, directory: Path) -> None:
        self.alter(directory, rope_parameters={"rope_type": "yarn", "factor": 4.0})
        with pytest.raises(ModelError, match="'yarn' is not known"):
            load(directory)

    def test_an_index_that_points_outside(self, directory: Path) -> None:
        (directory / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../secret.safetensors"}}')
        with pytest.raises(ModelError, match="outside its directory"):
            load(directory)

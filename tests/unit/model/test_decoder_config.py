"""config.json of every family: what is read, what is refused by name, and that no damage gets past as anything else."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.model import LlamaConfig, ModelError, read_config
from kubeformer_runtime.model.config import RopeScaling
from tests.unit.model.builders import classifier_config, llama_config

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


def read(model_type: str, **changes: Any) -> LlamaConfig:
    return LlamaConfig.from_json({"model_type": model_type, **({} if model_type == "gpt2" else SIZES), **changes})


def test_features_that_tell_the_families_apart() -> None:
    llama, mistral, qwen2 = read("llama"), read("mistral"), read("qwen2")
    qwen3, gpt2 = read("qwen3"), read("gpt2", vocab_size=50257)
    assert [config.norm for config in (llama, mistral, qwen2, qwen3, gpt2)] == ["RMSNorm"] * 4 + ["LayerNorm"]
    assert (gpt2.positions, gpt2.activation, gpt2.tied_embeddings) == ("Learned", "GELUTanh", True)
    assert (gpt2.width, gpt2.heads, gpt2.mlp_width, gpt2.max_length) == (768, 12, 3072, 1024)
    assert [config.attention_bias for config in (llama, mistral, qwen2, qwen3, gpt2)] == [
        False,
        False,
        True,
        False,
        True,
    ]
    assert [config.has_output_bias for config in (qwen2, gpt2)] == [False, True]
    assert [config.qk_norm for config in (llama, qwen2, qwen3)] == [False, False, True]
    assert [config.head_width for config in (llama, mistral, qwen3)] == [8, 8, 128]
    assert [config.sliding_window for config in (llama, mistral, qwen2, qwen3)] == [None, 4096, None, None]
    assert read("mistral", sliding_window=None).sliding_window is None


def test_windows_begin_where_the_config_says() -> None:
    by_layers = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3}
    by_kinds = by_layers | {"layer_types": ["full_attention"] * 3 + ["sliding_attention"], "max_window_layers": 28}
    for fields in (by_layers, by_kinds):
        config = read("qwen3", **fields)
        assert [config.window_of(layer) for layer in range(4)] == [None, None, None, 7]
    assert read("qwen2", **(by_layers | {"max_window_layers": 4})).sliding_window is None
    assert read("qwen2", **(by_layers | {"use_sliding_window": False})).sliding_window is None


VARIETY = [
    llama_config(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32), mlp_bias=True),
    llama_config(family="mistral", sliding_window=9),
    llama_config(family="qwen2", attention_bias=True, output_bias=False, sliding_window=9, first_sliding_layer=1),
    llama_config(family="qwen3", qk_norm=True, head_width=10, eos_token_ids=(2, 7)),
    read("gpt2", vocab_size=97, n_inner=100, activation_function="relu", eos_token_id=2),
]


@pytest.mark.parametrize("config", VARIETY, ids=lambda config: config.family)
def test_what_is_written_is_read_again(tmp_path: Path, config: LlamaConfig) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn' is not known here; known are default, linear"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "'dynamic' is not known"),
        ({"rope_scaling": {"type": "linear"}}, "needs 'factor'"),
        ({"rope_scaling": "linear"}, "rope_scaling has to be an object, not 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "needs 'low_freq_factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised .*'gptq'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; it has to be 1 to"),
        ({"num_hidden_layers": 5000}, "num_hidden_layers is 5000; there can be 1000 at most"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers has to be an integer, not '4'"),
        ({"hidden_size": 4.5}, "hidden_size has to be an integer, not 4.5"),
        ({"hidden_size": None}, "hidden_size has to be an integer, not None"),
        ({"hidden_size": 50}, "hidden_size 50 cannot be split over 6 heads"),
        ({"num_key_value_heads": 4}, "6 heads cannot share 4 key-value heads"),
        ({"head_dim": 7}, "a head is 7 wide"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps has to be a number, not nan"),
        ({"rms_norm_eps": 0}, "rms_norm_eps has to be a number above 0"),
        ({"rope_theta": True}, "rope_theta has to be a number, not True"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings has to be true or false, not 'yes'"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id has to be a token id"),
        ({"vocab_size": 10**40}, "vocab_size is 1000"),
    ],
    ids=str,
)
def test_what_nobody_here_computes_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read("llama", **changes)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
        ("gpt2", {"activation_function": "silu"}, "activation_function is 'silu'; known are gelu, "),
        ("gpt2", {"n_head": 7}, "n_embd 768 cannot be split evenly over n_head 7"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        (
            "qwen3",
            {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"] * 2},
            "layer_types mixes kinds of attention",
        ),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": "3"}, "max_window_layers has to be an integer"),
    ],
    ids=str,
)
def test_what_a_family_may_ask_for_and_we_do_not_do(family: str, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read(family, vocab_size=97, **changes)


def test_another_family_is_one_sentence_that_says_which_there_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}')
    with pytest.raises(ModelError) as caught:
        read_config(tmp_path)
    text = str(caught.value)
    assert "model_type is 'mamba'" in text
    assert "supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, GPT2LM" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"vocab_size": NaN}', "holds NaN where a number has to be"),
        (b'{"vocab_size": -Infinity}', "holds -Infinity"),
        (b"\xff\xfe{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"vocab_size": 1' + b"0" * 10_000 + b"}", "is not JSON"),
        (b"[]", "is not a JSON object"),
    ],
    ids=["NaN", "infinity", "no UTF-8", "too deep", "an endless number", "a list"],
)
def test_a_file_that_is_no_config_at_all(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=words):
        read_config(tmp_path)


DOCUMENTS = [config.to_json() for config in [*VARIETY, classifier_config()]]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=60)
@given(data=st.data())
def test_any_damage_to_any_field_gives_a_config_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    document = dict(data.draw(st.sampled_from(DOCUMENTS)))
    document[data.draw(st.sampled_from(sorted(document)))] = data.draw(JSON)
    directory = tmp_path_factory.getbasetemp()
    (directory / "config.json").write_text(json.dumps(document))
    with suppress(ModelError):
        read_config(directory).check()

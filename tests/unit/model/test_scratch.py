"""Models from the beginning: the activation picks a generation of Transformer, and with it a layout."""

import pytest

from kubeformer_runtime.model import ModelError
from kubeformer_runtime.model.decoder_config import LlamaConfig
from kubeformer_runtime.model.scratch import Shape, decoder


def make_decoder(shape: Shape) -> LlamaConfig:
    return decoder(shape, vocabulary_size=300, max_length=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)


def test_a_gated_mlp_makes_a_llama() -> None:
    config = make_decoder(Shape(2, 64, 8, key_value_heads=2, activation="SwiGLU"))
    assert config.to_json()["architectures"] == ["LlamaForCausalLM"]
    assert (config.positions, config.norm, config.key_value_heads, config.mlp_width) == ("Rotary", "RMSNorm", 2, 256)


@pytest.mark.parametrize(("activation", "theirs"), [("ReLU", "relu"), ("GELU", "gelu_new")])
def test_a_plain_mlp_makes_a_gpt2(activation: str, theirs: str) -> None:
    config = make_decoder(Shape(2, 64, 8, mlp_width=100, activation=activation))  # type: ignore[arg-type]
    document = config.to_json()
    assert (document["architectures"], document["activation_function"]) == (["GPT2LMHeadModel"], theirs)
    assert LlamaConfig.from_json(document) == config


def test_grouped_queries_are_refused_where_the_layout_has_none() -> None:
    with pytest.raises(ModelError, match="keyValueHeads is 2 with 8 heads, but GPT-2's layout"):
        make_decoder(Shape(2, 64, 8, key_value_heads=2, activation="ReLU"))


def test_heads_that_do_not_share_the_width_are_named() -> None:
    with pytest.raises(ModelError, match="width 64 cannot be split over 7 heads"):
        make_decoder(Shape(2, 64, 7))

"""Quantised weights pass the gate: SmolLM2's perplexity stays within half a percent in int8, within two in int4."""

from pydoc_data.topics import topics

import pytest
import torch

from examples import smollm2
from kubeformer_runtime.engine.cpu_runner import CpuRunner, Quantization
from kubeformer_runtime.engine.perplexity import perplexity, token_logprobs
from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.weights import load


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    """English prose that every Python brings, in pieces of 512 tokens."""
    tokenizer = EngineTokenizer.load(smollm2.ensure())
    return [tokenizer.encode(topics[name], add_special_tokens=False)[:512] for name in ("exceptions", "import")]


def runner(dtype: torch.dtype, quantization: Quantization = "None") -> CpuRunner:
    loaded = load(smollm2.ensure(), dtype)
    assert isinstance(loaded.config, LlamaConfig)
    return CpuRunner(loaded.config, loaded.weights, num_blocks=32, max_length=512, quantization=quantization, threads=2)


def test_perplexity_of_quantised_weights_is_that_of_the_unquantised(texts: list[list[int]]) -> None:
    exact = perplexity(runner(torch.float32), texts)
    assert 5 < exact < 30
    found = {
        "bfloat16": perplexity(runner(torch.bfloat16), texts) / exact,
        "int8": perplexity(runner(torch.bfloat16, "Int8"), texts) / exact,
        "int4": perplexity(runner(torch.bfloat16, "Int4"), texts) / exact,
    }
    assert found["bfloat16"] < 1.002
    assert found["int8"] < 1.005
    assert found["int4"] < 1.02


def test_float32_log_probabilities_are_those_of_transformers(texts: list[list[int]]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2.ensure(), dtype=torch.float32)
    ours = runner(torch.float32)
    with torch.inference_mode():
        for tokens in texts[:1]:
            logit_TV = model(torch.tensor([tokens])).logits[0, :-1]
            theirs = torch.log_softmax(logit_TV, -1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
            assert (token_logprobs(ours, tokens) - theirs).abs().max() < 1e-4


def test_a_text_that_does_not_fit_the_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="600 tokens"):
        token_logprobs(runner(torch.bfloat16), [1] * 600)

"""The engine of a deployment: which it is follows from type and resources, and what it cannot do is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kubeformer.api.engine import OWN_FLAGS, accelerators, engine_of
from kubeformer.api.rules import sentences
from tests.unit.api.builders import deployment

GPU = {"limits": {"nvidia.com/gpu": 1}}


def refusal(**spec: Any) -> str:
    """The sentence with which a deployment is refused."""
    with pytest.raises(ValidationError) as refused:
        deployment(**spec)
    (sentence,) = sentences(refused.value)
    return sentence


@pytest.mark.parametrize(
    ("spec", "engine", "words"),
    [
        ({}, "Builtin", "name no accelerator"),
        ({"resources": {"limits": {"cpu": 4, "memory": "8Gi", "hugepages-2Mi": "1Gi"}}}, "Builtin", "no accelerator"),
        ({"resources": {"limits": {"rdma/hca": 1, "example.com/licence": 1}}}, "Builtin", "no accelerator"),
        ({"resources": {"limits": {"nvidia.com/gpu": 0}}}, "Builtin", "no accelerator"),
        ({"resources": GPU}, "VLLM", "spec.resources name nvidia.com/gpu"),
        ({"resources": {"requests": {"amd.com/gpu": "1"}}}, "VLLM", "spec.resources name amd.com/gpu"),
        ({"resources": {"limits": {"nvidia.com/mig-1g.5gb": 1}}}, "VLLM", "nvidia.com/mig-1g.5gb"),
        ({"resources": GPU, "engine": {"type": "Builtin"}}, "Builtin", "spec.engine.type is Builtin"),
        ({"engine": {"type": "VLLM"}}, "VLLM", "spec.engine.type is VLLM"),
    ],
)
def test_auto_is_vllm_where_there_is_an_accelerator_and_says_why(spec: dict[str, Any], engine: str, words: str) -> None:
    found, why = engine_of(deployment(**spec).spec)
    assert found == engine
    assert words in why


def test_accelerators_are_counted() -> None:
    assert accelerators({"nvidia.com/gpu": "4", "cpu": 2}, {"nvidia.com/gpu": 4}) == {"nvidia.com/gpu": 4}
    assert accelerators({"google.com/tpu": 8}, {}) == {"google.com/tpu": 8}
    assert accelerators({}, {}) == {}


@pytest.mark.parametrize("vllm", [{"engine": {"type": "VLLM"}}, {"resources": GPU}])
@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"engine": {"quantization": "Int8"}}, "engine.quantization must be None with vLLM"),
        ({"engine": {"numerics": "Reproducible"}}, "engine.numerics must be Fast with vLLM"),
        ({"sampling": {"seed": 7}}, "sampling.seed cannot be set with vLLM"),
        ({"sampling": {"maxTokens": 7}}, "sampling.maxTokens cannot be set with vLLM"),
    ],
)
def test_what_vllm_cannot_do_is_refused_with_a_way_out(vllm: dict[str, Any], wish: dict[str, Any], words: str) -> None:
    both = vllm | wish | {"engine": vllm.get("engine", {}) | wish.get("engine", {})}
    sentence = refusal(**both)
    assert words in sentence
    assert "engine.type: Builtin" in sentence or "extraArgs: [--quantization=fp8]" in sentence
    deployment(**wish)  # the built-in engine can


def test_arguments_of_vllm_are_for_vllm() -> None:
    extra = {"extraArgs": ["--quantization=fp8", "--enable-auto-tool-choice"]}
    deployment(engine={"type": "VLLM"} | extra)
    deployment(engine=extra, resources=GPU)
    assert "set engine.type: VLLM" in refusal(engine=extra)


@pytest.mark.parametrize(
    "argument", [*OWN_FLAGS, "--model=x", "--max-model-le=5", "--m", "--speculative-config.method=ngram", "--hos=::"]
)
def test_what_other_fields_say_cannot_be_said_again_not_even_in_short(argument: str) -> None:
    assert "follows from other fields of the spec" in refusal(engine={"type": "VLLM", "extraArgs": [argument]})


@pytest.mark.parametrize("argument", ["quantization", "-q=fp8", "--max_logprobs=5", "--x y", "-O3", "--Upper"])
def test_an_argument_is_one_word_as_vllm_writes_it(argument: str) -> None:
    assert "must be one argument of vLLM in lower case" in refusal(engine={"type": "VLLM", "extraArgs": [argument]})


def test_an_empty_n_gram_is_enough_to_draft_and_nothing_else_is() -> None:
    speculative = deployment(engine={"speculative": {"nGram": {}}}).spec.engine.speculative
    assert speculative is not None
    assert speculative.n_gram.tokens == 4
    assert refusal(engine={"speculative": {}}) == "spec.engine.speculative.nGram: is required"


def test_an_adapter_has_a_name_of_its_own() -> None:
    adapter = {"name": "legal", "uri": "pvc://models/legal"}

    def model(**more: Any) -> dict[str, Any]:
        return {"model": {"uri": "pvc://models/base", "adapters": [adapter], **more}}

    assert deployment(**model()).spec.model.adapters[0].name == "legal"
    assert "must not be one of servedNames" in refusal(**model(servedNames=["assistant", "legal"]))
    assert "Duplicate value" in refusal(**model(adapters=[adapter, adapter]))
    mine = {"name": "x", "uri": "pvc://models/legal"}  # the deployment's own name
    assert "must not be the resource's own" in refusal(**model(adapters=[mine]))
    deployment(**model(adapters=[mine], servedNames=["assistant"]))

"""LoRA: rows with an adapter get the tokens of `transformers` with the adapter merged, whoever shares their step."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from kubeformer.contract.base import Location
from kubeformer.contract.names import Reason
from kubeformer.contract.server import Adapter
from kubeformer_runtime.engine.core import EngineCore
from kubeformer_runtime.engine.llama_runner import LlamaRunner
from kubeformer_runtime.engine.loading import LanguageModel, load_engine
from kubeformer_runtime.engine.lora import read_adapter
from kubeformer_runtime.engine.plan import SchedulerConfig
from kubeformer_runtime.engine.sampling_params import ParameterError
from kubeformer_runtime.model import ModelError, load
from kubeformer_runtime.model.digest import digest
from tests.engine.family_builders import (
    NATIVE,
    VOCABULARY,
    Runner,
    assert_as_transformers,
    config_of,
    play,
    runner_of,
    write_adapter,
    write_family,
)
from tests.unit.engine.builders import EOS, byte_tokenizer, outputs, request, write_model
from tests.unit.engine.test_loading import settings as server_settings

EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Family: what two adapters change, and how.
CASES: dict[str, list[tuple[tuple[str, ...], dict[str, Any]]]] = {
    "Llama": [(EVERYWHERE, {}), (("v_proj", "q_proj"), {"rank": 3, "use_rslora": True})],
    "Qwen3": [(("k_proj", "down_proj"), {"lora_alpha": 9}), (EVERYWHERE, {"rank": 1})],
    "GPT-2": [(("c_attn",), {"fan_in_fan_out": True}), (("c_attn", "c_proj", "c_fc"), {"rank": 2})],
}
PROMPTS = [[5], list(range(30)), [*range(30), 7, 7], [3, 1, 4, 1, 5, 9, 2, 6]]
KINDS = [(family, "PyTorch") for family in CASES] + [(family, "kernels") for family in CASES if family in NATIVE]
Served = tuple[Runner, dict[str | None, PreTrainedModel]]


def serve(directory: Path, family: str, kind: str) -> Served:
    """A runner with two adapters, and what `transformers` makes of each."""
    models: dict[str | None, PreTrainedModel] = {None: write_family(directory / "base", family)}
    runner = runner_of(directory / "base", kind, tokens=480)
    for number, (targets, fields) in enumerate(CASES[family]):
        name = f"adapter {number}"
        models[name] = write_adapter(directory / name, models[None], targets, seed=number, **fields)
        runner.add_adapter(name, read_adapter(directory / name, runner.config))
    return runner, models


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Served]:
    return {case: serve(tmp_path_factory.mktemp("lora"), *case) for case in KINDS}


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_rows_of_two_adapters_and_of_none_share_steps(
    served: dict[tuple[str, str], Served], case: tuple[str, str]
) -> None:
    runner, models = served[case]
    names = [name for name in models for _ in PROMPTS]
    found = play(runner, PROMPTS * len(models), adapters=names, budget=21, max_num_seqs=7)
    for name, played in zip(names, found, strict=True):
        assert_as_transformers(models[name], played)
    assert len({tuple(played.tokens) for played in found}) > 2 * len(PROMPTS)  # the adapters do change answers


@settings(max_examples=15)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20),
            st.sampled_from([None, "adapter 0", "adapter 1"]),
        ),
        min_size=1,
        max_size=5,
    ),
    shared=st.lists(st.integers(0, VOCABULARY - 1), max_size=20),
    budget=st.integers(1, 40),
    case=st.sampled_from(KINDS),
)
def test_any_mix_of_adapter_batch_chunk_prefix_hit_and_preemption(
    served: dict[tuple[str, str], Served],
    rows: list[tuple[list[int], str | None]],
    shared: list[int],
    budget: int,
    case: tuple[str, str],
) -> None:
    runner, models = served[case]
    prompts = [shared + prompt for prompt, _ in rows]
    for played, (_, name) in zip(
        play(runner, prompts, adapters=[name for _, name in rows], budget=budget, length=4), rows, strict=True
    ):
        assert_as_transformers(models[name], played)


def core_of(runner: LlamaRunner) -> EngineCore:
    return EngineCore(runner, SchedulerConfig(8, 64, 100), byte_tokenizer(), frozenset({EOS}))


def test_adapters_come_and_go_while_answers_run(tmp_path: Path) -> None:
    """An answer under way ends with the adapter it began with, and its cache is not taken for the next one's."""
    base = write_family(tmp_path / "base", "Llama")
    first = write_adapter(tmp_path / "first", base, EVERYWHERE, seed=1)
    second = write_adapter(tmp_path / "second", base, EVERYWHERE, seed=2)
    runner = LlamaRunner(config_of(tmp_path / "base"), load(tmp_path / "base").weights, num_blocks=60, block_size=4)
    core = core_of(runner)
    prompt = list(range(20))
    with pytest.raises(ParameterError, match="`law` is not loaded"):
        core.check(replace(request("r", prompt), adapter="law"))
    core.add_adapter("law", tmp_path / "first")
    with pytest.raises(ModelError, match="loaded already"):
        core.add_adapter("law", tmp_path / "second")
    core.add(replace(request("old", prompt, ignore_eos=True), adapter="law"))
    tokens = [item.token for delta in core.step().deltas for item in delta.tokens]
    core.remove_adapter("law")
    assert core.adapters() == ()
    core.add_adapter("law", tmp_path / "second")
    assert core.adapters() == ("law",)
    new = replace(request("new", prompt, ignore_eos=True), adapter="law")
    plain = request("plain", prompt, ignore_eos=True)
    found = outputs(core, new, plain)
    for model, answer in (
        (first, tokens + found["old", 0]),
        (second, found["new", 0]),
        (base, found["plain", 0]),
    ):
        assert answer == greedy(model, prompt, len(answer))
    core.remove_adapter("law")
    assert runner.held_adapters == ()
    with pytest.raises(ParameterError, match="not loaded"):
        core.add(new)


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: list[int], length: int) -> list[int]:
    """By `transformers`, without a cache."""
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_adapters_of_the_settings_are_there_from_the_start(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    write_plain_adapter(tmp_path / "law", tmp_path / "m")
    location = Location(uri="pvc://a/law", path=str(tmp_path / "law"), digest=digest(tmp_path / "law"))
    fields = {"adapters": [Adapter(name="law", location=location)]}
    model = load_engine(server_settings(tmp_path / "m", **fields), threads=1)
    assert isinstance(model, LanguageModel)
    assert model.core.adapters() == ("law",)
    plain, changed = request("plain", b"hello"), replace(request("changed", b"hello"), adapter="law")
    found = outputs(model.core, plain, changed)
    assert found["plain", 0] != found["changed", 0]


@pytest.mark.parametrize(
    ("name", "uri", "digest_given", "words"),
    [
        ("law", "pvc://a/nowhere", None, r"adapter law \(pvc://a/nowhere\): there is no adapter directory"),
        ("law", "pvc://a/law", "sha256:" + "0" * 64, "adapter law .* was asked for"),
        ("tiny", "pvc://a/law", None, "name of the model itself"),
    ],
)
def test_an_adapter_of_the_settings_that_cannot_be_served_ends_the_start(
    tmp_path: Path, name: str, uri: str, digest_given: str | None, words: str
) -> None:
    write_model(tmp_path / "m")
    write_plain_adapter(tmp_path / "law", tmp_path / "m")
    location = Location(uri=uri, path=str(tmp_path / uri.rsplit("/", 1)[-1]), digest=digest_given)
    with pytest.raises(ModelError, match=words):
        load_engine(server_settings(tmp_path / "m", adapters=[Adapter(name=name, location=location)]), threads=1)


def write_plain_adapter(directory: Path, base: Path) -> None:
    """For the v projections of a model directory."""
    directory.mkdir()
    tensors = {}
    for name, weight in load(base).weights.items():
        if name.endswith("v_proj.weight"):
            module = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = torch.ones(2, weight.shape[1])
            tensors[f"{module}.lora_B.weight"] = torch.arange(2.0 * len(weight)).view(-1, 2) % 3
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["v_proj"]}')


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "m")


class TestErrorsNameWhatIsWrong:
    @pytest.fixture
    def adapter(self, tmp_path: Path, base: Path) -> Path:
        write_plain_adapter(tmp_path / "a", base)
        return tmp_path / "a"

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"use_dora": True}, "use_dora is True"),
            ({"bias": "all"}, "bias is 'all'"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
            ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
            ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
            ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
            ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
            ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
            ({"something_new": {"x": 1}}, "something_new"),
            ({"r": 3}, r"lora_A of .* has shape \(2, 48\), but rank 3 .* make it \(3, 48\)"),
            ({"r": "many"}, "r has to be an integer"),
            ({"lora_alpha": None, "r": 0}, "r is 0"),
            ({"target_modules": ["v_proj", "q_proj"]}, "target_modules names q_proj, but"),
        ],
        ids=str,
    )
    def test_an_option_that_nobody_here_computes(
        self, base: Path, adapter: Path, changes: dict[str, object], words: str
    ) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(ModelError, match=words):
            read_adapter(adapter, config_of(base))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda t: t | {"base_model.model.lm_head.lora_A.weight": torch.ones(2, 48)}, "changes lm_head, which"),
            (
                lambda t: t | {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(2, 48)},
                "changes model.layers.9.self_attn.q_proj, which",
            ),
            (lambda t: dict(list(t.items())[1:]), "lacks lora_A of model.layers.0.self_attn.v_proj"),
            (lambda t: {name: value * torch.nan for name, value in t.items()}, "not finite"),
            (lambda t: {name: value[:1] for name, value in t.items()}, "is it made for another model"),
            (lambda t: t | {"x.lora_embedding_A": torch.ones(2, 2)}, "x.lora_embedding_A, which is no LoRA matrix"),
            (lambda t: {}, "holds nothing for it"),
        ],
    )
    def test_weights_that_do_not_fit(
        self, base: Path, adapter: Path, change: Callable[[dict[str, Any]], dict[str, Any]], words: str
    ) -> None:
        path = adapter / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)
        with pytest.raises(ModelError, match=words):
            read_adapter(adapter, config_of(base))

    def test_files_that_are_missing_cut_short_or_pickled(self, base: Path, adapter: Path) -> None:
        config, path = config_of(base), adapter / "adapter_model.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-9])
        with pytest.raises(ModelError, match="damaged"):
            read_adapter(adapter, config)
        path.unlink()
        with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors") as caught:
            read_adapter(adapter, config)
        assert caught.value.reason == Reason.MODEL_NOT_FOUND
        (adapter / "adapter_model.bin").write_bytes(content)
        with pytest.raises(ModelError, match="a pickle, which can run code"):
            read_adapter(adapter, config)
        (adapter / "adapter_config.json").unlink()
        with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
            read_adapter(adapter, config)

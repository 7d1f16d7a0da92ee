"""What operators of a server ask over HTTP: adapters, sleep, caches, aborts, tokens, load; and what /metrics says."""

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file

from kubeformer.contract.base import Location
from kubeformer_runtime.engine.core import EngineCore
from kubeformer_runtime.engine.loading import load_engine
from kubeformer_runtime.engine.plan import SchedulerConfig
from kubeformer_runtime.server import operations
from tests.unit.engine.builders import EOS, ScriptRunner, byte_tokenizer, tiny_core, until, write_model
from tests.unit.server.builders import NAME, Client, client_of, language_model, server_settings

PROMPT = [5, 6, 7, 8] * 6  # six blocks of four tokens


def write_adapter(directory: Path, seed: int) -> Path:
    """A LoRA adapter for the tiny Llama in PEFT's layout, large enough to change every answer."""
    directory.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(2):
        for part, width in (("q_proj", 48), ("v_proj", 16)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            weights[f"{name}.lora_A.weight"] = torch.randn(2, 48, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(width, 2, generator=generator)
    save_file(weights, directory / "adapter_model.safetensors")
    return directory


def endless_core() -> EngineCore:
    """An engine whose answers last until they are aborted."""
    runner = ScriptRunner(lambda position: ord("x"), num_blocks=60_000)
    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=200_000)
    return EngineCore(runner, config, byte_tokenizer(), frozenset({EOS}))


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """A server whose model lies in a directory, so that adapters may lie beside it."""
    settings = server_settings(model=Location(uri="pvc://models/tiny", path=str(tmp_path / "models" / "tiny")))
    async with client_of(language_model(tiny_core()), settings) as found:
        yield found


async def answer(client: Client, model: str) -> list[float]:
    """Log-probabilities of a greedy answer: a fingerprint of the weights that wrote it."""
    found = await client.complete(model=model, prompt=PROMPT, logprobs=0, ignore_eos=True)
    assert found["model"] == model
    numbers: list[float] = found["choices"][0]["logprobs"]["token_logprobs"]
    return numbers


async def test_an_adapter_comes_is_listed_answers_and_goes(client: Client, tmp_path: Path) -> None:
    base = await answer(client, NAME)
    for number, name in enumerate(("law", "medicine")):
        path = write_adapter(tmp_path / "models" / name, seed=number)
        await client.post("/v1/load_lora_adapter", lora_name=name, lora_path=str(path))
    cards = {card["id"]: card for card in json.loads((await client.get("/v1/models"))[1])["data"]}
    assert cards["law"]["parent"] == NAME
    assert cards[NAME]["parent"] is None
    law, medicine, again = await asyncio.gather(*(answer(client, name) for name in ("law", "medicine", NAME)))
    assert law != pytest.approx(base, abs=1e-3)
    assert medicine != pytest.approx(law, abs=1e-3)
    assert again == pytest.approx(base, abs=1e-4)  # and no prefix of the others' cache was taken
    assert await client.metric('vllm:lora_requests_info{max_lora="2",running_lora_adapters=""}') > 0
    await client.post("/v1/unload_lora_adapter", lora_name="law")
    assert (await client.complete(404, model="law", prompt="a"))["error"]["param"] == "model"
    assert (await client.post("/v1/unload_lora_adapter", 404, lora_name="law"))["error"]["param"] == "lora_name"
    assert await answer(client, "medicine") == pytest.approx(medicine, abs=1e-4)


async def test_a_running_adapter_shows_in_metrics(client: Client, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "models" / "law", seed=0)
    await client.post("/v1/load_lora_adapter", lora_name="law", lora_path=str(path))
    gate = threading.Event()
    engine = client.serving.need_generator().engine
    held = asyncio.create_task(engine.call(lambda: gate.wait(60)))  # no step before the gate opens
    running = asyncio.create_task(client.complete(model="law", prompt="ab"))
    await until(lambda: engine.num_requests == 1)
    assert await client.metric('vllm:lora_requests_info{running_lora_adapters="law"}') > 0
    gate.set()
    await asyncio.gather(held, running)
    await until(lambda: not client.serving.active)
    assert await client.metric('vllm:lora_requests_info{running_lora_adapters=""}') > 0


@pytest.mark.parametrize(
    ("name", "path", "param"),
    [
        ("a", "/etc", "lora_path"),
        ("a", "../../../../etc", "lora_path"),
        ("a", "{models}/../../etc/passwd", "lora_path"),
        ("a", "{models}", "lora_path"),
        ("a", "{models}/link", "lora_path"),
        ("a", "{models}/missing", "lora_path"),
        ("a", "{models}/empty", "lora_path"),
        ("a", "{models}/good\x00", "lora_path"),
        ("a", "/mnt/claims/../../etc", "lora_path"),
        (NAME, "{models}/good", "lora_name"),
        ("../a", "{models}/good", "lora_name"),
        ("", "{models}/good", "lora_name"),
    ],
)
async def test_only_directories_below_the_models_volumes_are_looked_at(
    client: Client, tmp_path: Path, name: str, path: str, param: str
) -> None:
    models = tmp_path / "models"
    write_adapter(models / "good", seed=0)
    (models / "empty").mkdir()
    shutil.copytree(models / "good", tmp_path / "outside")
    (models / "link").symlink_to(tmp_path / "outside")
    found = await client.post(
        "/v1/load_lora_adapter", 400, lora_name=name, lora_path=path.replace("{models}", str(models))
    )
    assert found["error"]["param"] == param
    assert client.serving.adapters == {}
    await client.complete(prompt="ab")


async def test_sleep_gives_memory_back_and_wake_answers_as_before(tmp_path: Path) -> None:
    location = Location(uri="pvc://models/tiny", path=str(write_model(tmp_path / "tiny")))
    settings = server_settings(model=location, kv_cache_megabytes=1, max_num_seqs=4)
    async with client_of(load_engine(settings, threads=1), settings) as client:
        before = await client.complete(prompt="once upon", logprobs=1)
        assert json.loads((await client.get("/is_sleeping"))[1]) == {"is_sleeping": False}
        async with client.http.post("/sleep?level=1") as response:
            assert response.status == 200
        await client.post("/sleep")  # twice is harmless
        assert json.loads((await client.get("/is_sleeping"))[1]) == {"is_sleeping": True}
        status, text = await client.get("/health")
        assert (status, json.loads(text)["status"]) == (200, "asleep")
        assert await client.metric('vllm:engine_sleep_state{sleep_state="weights_offloaded"}') == 1
        assert await client.metric('vllm:engine_sleep_state{sleep_state="awake"}') == 0
        async with client.http.post("/v1/completions", json={"prompt": "ab"}) as response:
            assert response.status == 503
            assert response.headers["Retry-After"]
            assert "wake_up" in (await response.json())["error"]["message"]
        assert (await client.post("/tokenize", prompt="ab"))["count"] == 2  # what needs no weights is answered
        await client.post("/wake_up")
        assert await client.metric('vllm:engine_sleep_state{sleep_state="awake"}') == 1
        after = await client.complete(prompt="once upon", logprobs=1)
        assert after["choices"] == before["choices"]


async def test_adapters_are_still_there_after_waking(tmp_path: Path) -> None:
    location = Location(uri="pvc://models/tiny", path=str(write_model(tmp_path / "tiny")))
    settings = server_settings(model=location, kv_cache_megabytes=1, max_num_seqs=4)
    async with client_of(load_engine(settings, threads=1), settings) as client:
        path = write_adapter(tmp_path / "law", seed=0)
        await client.post("/v1/load_lora_adapter", lora_name="law", lora_path=str(path))
        before, base = await answer(client, "law"), await answer(client, NAME)
        assert before != pytest.approx(base, abs=1e-3)
        await client.post("/sleep")
        sleeping = await client.post("/v1/load_lora_adapter", 503, lora_name="other", lora_path=str(path))
        assert "wake_up" in sleeping["error"]["message"]
        await client.post("/wake_up")
        assert await answer(client, "law") == pytest.approx(before, abs=1e-4)
        assert await answer(client, NAME) == pytest.approx(base, abs=1e-4)


async def test_an_answer_under_way_waits_and_goes_on_after_waking(tmp_path: Path) -> None:
    location = Location(uri="pvc://models/tiny", path=str(write_model(tmp_path / "tiny")))
    settings = server_settings(model=location, kv_cache_megabytes=1, max_num_seqs=4)
    async with client_of(load_engine(settings, threads=1), settings) as client:
        body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 90, "ignore_eos": True, "seed": 1, "temperature": 1}
        expected = await client.complete(**body)
        engine = client.serving.need_generator().engine
        gate = threading.Event()
        held = asyncio.create_task(engine.call(lambda: gate.wait(60)))  # no step before the gate opens
        running = asyncio.create_task(client.complete(**body))
        await until(lambda: engine.num_requests == 1)
        falling_asleep = asyncio.create_task(client.post("/sleep"))
        await until(lambda: engine.num_calls == 2)
        gate.set()
        await asyncio.gather(held, falling_asleep)
        assert client.serving.asleep
        assert not running.done()
        await client.post("/wake_up")
        assert (await running)["choices"] == expected["choices"]


async def test_a_client_that_leaves_while_the_server_falls_asleep_leaves_nothing_half_done(tmp_path: Path) -> None:
    location = Location(uri="pvc://models/tiny", path=str(write_model(tmp_path / "tiny")))
    settings = server_settings(model=location, kv_cache_megabytes=1, max_num_seqs=4)
    async with client_of(load_engine(settings, threads=1), settings) as client:
        engine = client.serving.need_generator().engine
        gate = threading.Event()
        held = asyncio.create_task(engine.call(lambda: gate.wait(60)))
        order = asyncio.create_task(operations.sleep(client.serving, operations.SleepQuery()))
        await until(lambda: engine.num_calls == 2)
        order.cancel()
        gate.set()
        await held
        await until(lambda: client.serving.asleep)
        assert (await client.post("/v1/completions", 503, prompt="ab"))["error"]["code"] == 503
        await client.post("/wake_up")
        await client.complete(prompt="ab")


@pytest.mark.parametrize("query", ["level=3", "level=", "depth=1"])
async def test_a_bad_query_of_sleep_names_its_parameter(client: Client, query: str) -> None:
    async with client.http.post(f"/sleep?{query}") as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == query.partition("=")[0]
    assert not client.serving.asleep


async def test_a_forgotten_prefix_is_computed_again(client: Client) -> None:
    async def cached() -> int:
        usage: dict[str, Any] = (await client.complete(prompt=PROMPT, max_tokens=1))["usage"]
        number: int = usage["prompt_tokens_details"]["cached_tokens"]
        return number

    assert await cached() == 0
    assert await cached() > 0
    computed = await client.metric('vllm:prompt_tokens_by_source_total{source="local_compute"}')
    hit = await client.metric('vllm:prompt_tokens_by_source_total{source="local_cache_hit"}')
    assert hit == await client.metric("vllm:prompt_tokens_cached_total") > 0
    assert computed + hit == await client.metric("vllm:prompt_tokens_total") == 2 * len(PROMPT)
    await client.post("/reset_prefix_cache")
    assert await cached() == 0


async def test_aborted_requests_end_with_what_there_is(tmp_path: Path) -> None:
    async with client_of(language_model(endless_core())) as client:
        chosen = asyncio.create_task(client.complete(prompt="ab", max_tokens=100_000, request_id="mine"))
        other = asyncio.create_task(client.complete(prompt="ab", max_tokens=100_000))
        engine = client.serving.need_generator().engine
        await until(lambda: engine.num_requests == 2)
        assert await client.post("/abort_requests", request_ids=["cmpl-mine", "unknown"]) == {"aborted": 1}
        ended = await chosen
        assert ended["choices"][0]["finish_reason"] == "abort"
        assert ended["choices"][0]["text"].strip("x") == ""
        assert await client.post("/abort_requests") == {"aborted": 1}
        assert (await other)["choices"][0]["finish_reason"] == "abort"
        assert await client.metric("vllm:kv_cache_usage_perc") == 0
        assert await client.metric('vllm:request_success_total{finished_reason="abort"}') == 2


async def test_tokens_of_prompts_and_conversations_are_those_that_a_request_would_have(client: Client) -> None:
    found = await client.post("/tokenize", prompt="ab<eos>", return_token_strs=True)
    assert found == {"count": 3, "max_model_len": 100, "tokens": [97, 98, 258], "token_strs": ["a", "b", "<eos>"]}
    assert await client.post("/detokenize", tokens=found["tokens"]) == {"prompt": "ab<eos>"}
    messages = [{"role": "user", "content": "Hi"}]
    chat = await client.post("/tokenize", messages=messages)
    assert chat["count"] == (await client.chat())["usage"]["prompt_tokens"]
    assert (await client.post("/detokenize", tokens=chat["tokens"]))["prompt"] == "<user>Hi\n<assistant>"
    bare = await client.post("/tokenize", messages=messages, add_generation_prompt=False)
    assert (await client.post("/detokenize", tokens=bare["tokens"]))["prompt"] == "<user>Hi\n"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages.0.content"),
        ("/tokenize", {"prompt": "a", "max_tokens": 1}, "max_tokens"),
        ("/detokenize", {"tokens": [100000]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [2**70]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/abort_requests", {"request_ids": "a"}, "request_ids"),
    ],
    ids=str,
)
async def test_a_bad_request_names_its_field(client: Client, path: str, body: dict[str, object], param: str) -> None:
    assert (await client.post(path, 400, **body))["error"]["param"].startswith(param)


async def test_load_counts_requests_on_their_way_and_too_many_are_refused() -> None:
    async with client_of(language_model(endless_core())) as client:
        client.serving.max_requests = 2
        running = [asyncio.create_task(client.complete(prompt="ab", max_tokens=100_000)) for _ in range(2)]
        await until(lambda: client.serving.active == 2)
        assert json.loads((await client.get("/load"))[1]) == {"server_load": 2}
        async with client.http.post("/v1/completions", json={"prompt": "ab"}) as response:
            assert response.status == 503
            assert response.headers["Retry-After"]
        await client.post("/abort_requests")
        await asyncio.gather(*running)
        assert await client.metric('vllm:admission_rejections_total{reason="max_num_queued_reqs"}') == 1
        await client.complete(prompt="ab", max_tokens=2)


async def test_ping_is_health_and_version_says_how_is_computed(client: Client) -> None:
    assert (await client.get("/ping"))[0] == (await client.get("/health"))[0] == 200
    await client.post("/ping")
    version = json.loads((await client.get("/version"))[1])
    assert (version["numerics"], version["quantization"], version["dtype"]) == ("Fast", "None", "float32")
    assert version["kernels"] == "torch"
    for label, value in {"block_size": "4", "cache_dtype": "float32", "enable_prefix_caching": "True"}.items():
        assert await client.metric(f'vllm:cache_config_info{{{label}="{value}"}}') == 1

"""Everything beside generating: models, version, classification, metrics, clients that leave."""

import asyncio
import json

import pytest

from kubeformer_runtime.engine.classification import probabilities
from tests.unit.engine.builders import script_core, until
from tests.unit.server.builders import ALIAS, NAME, Client, client_of, language_model


async def settled(client: Client) -> None:
    """Wait until nothing runs and no block is held."""
    gauge = client.serving.metrics.kv_cache_usage
    await until(lambda: not client.serving.active and not gauge._value.get())


async def test_models_are_listed_under_every_served_name(client: Client) -> None:
    _, body = await client.get("/v1/models")
    assert [model["id"] for model in json.loads(body)["data"]] == [NAME, ALIAS]
    status, body = await client.get(f"/v1/models/{ALIAS}")
    assert (status, json.loads(body)["max_model_len"]) == (200, 100)
    status, body = await client.get("/v1/models/other")
    assert (status, json.loads(body)["error"]["param"]) == (404, "model")


async def test_version_says_how_the_model_is_computed(client: Client, classifier: Client) -> None:
    for server, length, digest in ((client, 100, None), (classifier, 16, "sha256:1234")):
        found = json.loads((await server.get("/version"))[1])
        assert (found["engine"], found["dtype"], found["max_model_len"]) == ("kubeformer", "float32", length)
        assert found["digest"] == digest
        assert found["version"]


async def test_classify_answers_with_the_models_probabilities_in_vllms_shape(classifier: Client) -> None:
    texts = ["win now", "", "see you at noon tomorrow", "ｗｉｎ  now"]
    answer = await classifier.post("/classify", model=NAME, input=texts)
    model = classifier.serving.need_labeller().model
    for index, (item, tokens) in enumerate(zip(answer["data"], model.encode(texts), strict=True)):
        expected = probabilities(model.model, [tokens], next(model.model.parameters()).device)[0]
        assert item["index"] == index
        assert item["probs"] == pytest.approx(expected, abs=1e-5)
        assert item["label"] == model.model.config.labels[expected.index(max(expected))]
        assert item["num_classes"] == 3
    assert answer["data"][0]["probs"] == pytest.approx(answer["data"][3]["probs"], abs=1e-5)  # cleaned as in training
    assert answer["object"] == "list"
    single = await classifier.post("/classify", input="win now")
    assert single["data"][0]["label"] == answer["data"][0]["label"]


@pytest.mark.parametrize(
    ("body", "param"), [({}, "input"), ({"input": 3}, "input"), ({"input": []}, "input"), ({"input": "a", "x": 1}, "x")]
)
async def test_a_bad_classify_request_names_its_field(classifier: Client, body: dict[str, object], param: str) -> None:
    assert (await classifier.post("/classify", 400, **body))["error"]["param"] == param
    assert (await classifier.post("/classify", 404, model="other", input="a"))["error"]["param"] == "model"


async def test_the_wrong_kind_of_model_says_which_path_is_right(client: Client, classifier: Client) -> None:
    assert "chat/completions" in (await client.post("/classify", 400, input="a"))["error"]["message"]
    assert "/classify" in (await classifier.complete(400, prompt="a"))["error"]["message"]
    assert "/classify" in (await classifier.chat(400))["error"]["message"]


async def test_metrics_have_vllms_names_and_count_exactly(client: Client) -> None:
    for number in range(3):
        await client.complete(prompt=[number, 7, 7], max_tokens=4, ignore_eos=True)
    await settled(client)
    expected = {
        "vllm:prompt_tokens_total": 9,
        "vllm:generation_tokens_total": 12,
        "vllm:time_to_first_token_seconds_count": 3,
        "vllm:inter_token_latency_seconds_count": 9,
        "vllm:e2e_request_latency_seconds_count": 3,
        "vllm:request_queue_time_seconds_count": 3,
        "vllm:request_prompt_tokens_sum": 9,
        "vllm:request_generation_tokens_sum": 12,
        "vllm:request_params_max_tokens_sum": 12,
        "vllm:iteration_tokens_total_sum": 9 + 12,  # prompt and generation tokens
        "vllm:iteration_tokens_total_count": 12,
        "vllm:request_max_num_generation_tokens_sum": 12,
        "vllm:request_prefill_kv_computed_tokens_sum": 9,
        "vllm:request_num_preemptions_sum": 0,
        "vllm:prompt_tokens_cached_total": 0,
        'vllm:prompt_tokens_by_source_total{source="local_compute"}': 9,
        'vllm:num_requests_waiting_by_reason{reason="capacity"}': 0,
        'vllm:engine_sleep_state{sleep_state="awake"}': 1,
        'vllm:request_success_total{finished_reason="length"}': 3,
        f'vllm:num_requests_running{{model_name="{NAME}",engine="0"}}': 0,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0,
    }
    assert {name: await client.metric(name) for name in expected} == expected


async def test_requests_of_a_classifier_show_as_running(classifier: Client) -> None:
    with classifier.serving.request():
        assert await classifier.metric("vllm:num_requests_running") == 1
    assert await classifier.metric("vllm:num_requests_running") == 0


async def test_a_client_that_hangs_up_aborts_its_request() -> None:
    async with client_of(language_model(script_core(b"x", 2, end=False, max_model_len=200))) as client:
        for stream in (True, False):
            body = {"prompt": "ab", "max_tokens": 190, "stream": stream}
            connection = asyncio.create_task(client.http.post("/v1/completions", json=body).__aenter__())
            await until(lambda: client.serving.active > 0)
            if stream:
                (await connection).close()
            else:
                connection.cancel()
            await settled(client)
        assert await client.metric('vllm:request_success_total{finished_reason="abort"}') >= 1
        answer = await client.complete(prompt="ab", max_tokens=3)
    assert answer["choices"][0]["text"] == "xxx"


async def test_many_clients_at_once_all_get_their_answer(client: Client) -> None:
    bodies = [{"prompt": [number % 7, 3], "n": 1 + number % 2, "ignore_eos": True} for number in range(30)]
    answers = await asyncio.gather(*(client.complete(**body) for body in bodies))
    for body, answer in zip(bodies, answers, strict=True):
        assert len(answer["choices"]) == body["n"]
        assert answer["usage"]["completion_tokens"] == 8 * body["n"]  # type: ignore[operator]
    await settled(client)

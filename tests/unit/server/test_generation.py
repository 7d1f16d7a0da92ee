"""Completions and chat: what is streamed is what is sent whole, and the shapes are OpenAI's."""

import pytest

from kubeformer.contract.server import SamplingDefaults
from kubeformer_runtime.engine.core import Delta
from kubeformer_runtime.server.frames import GAP, ChunkFrames, frame
from kubeformer_runtime.server.prepare import prepare_chat
from kubeformer_runtime.server.protocol import ChatRequest, StreamOptions
from kubeformer_runtime.server.shapes import Usage
from tests.unit.engine.builders import outputs, request, script_core, tiny_core
from tests.unit.server.builders import ALIAS, NAME, Client, client_of, language_model, server_settings

HELLO = b"Hello, world"
USER = [{"role": "user", "content": "a"}]


def hello(prompt_length: int, **limits: int):  # type: ignore[no-untyped-def]
    """A server whose model answers every prompt of that length with HELLO."""
    return client_of(language_model(script_core(HELLO, prompt_length, **limits)))


async def test_a_completion_has_the_engines_tokens_and_counts_them(client: Client) -> None:
    answer = await client.complete(model=ALIAS, prompt=[1, 2, 3], ignore_eos=True)
    expected = outputs(tiny_core(), request("r", [1, 2, 3], ignore_eos=True))["r", 0]
    tokenizer = client.serving.need_generator().model.tokenizer
    assert answer["choices"][0]["text"] == tokenizer.decode(expected)
    assert (answer["object"], answer["model"]) == ("text_completion", ALIAS)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 8,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_several_prompts_with_several_choices_come_in_order(client: Client) -> None:
    prompts = ["ab", "cd"]
    body = {"n": 2, "temperature": 1.0, "seed": 3, "ignore_eos": True}
    both = await client.complete(prompt=prompts, **body)
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    single = [await client.complete(prompt=prompt, **body) for prompt in prompts]
    assert [c["text"] for c in both["choices"]] == [c["text"] for answer in single for c in answer["choices"]]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("options", [{}, {"n": 2, "temperature": 1.0, "seed": 5}, {"stop": ["o, w"]}], ids=str)
async def test_a_stream_is_the_whole_answer_in_pieces(path: str, options: dict[str, object]) -> None:
    chat = "chat" in path
    prompt: dict[str, object] = {"messages": [{"role": "user", "content": "a"}]} if chat else {"prompt": "ab"}
    body = {**prompt, "max_tokens": 40, **options}
    async with hello(len("<user>a\n<assistant>") if chat else 2) as client:
        whole = await client.post(path, **{"temperature": 0, **body})
        chunks = await client.stream(path, **body)
    for choice in whole["choices"]:
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        pieces = [piece["delta"].get("content", "") if chat else piece["text"] for piece in mine]
        assert "".join(pieces) == (choice["message"]["content"] if chat else choice["text"])
        assert [piece["finish_reason"] for piece in mine if piece["finish_reason"]] == [choice["finish_reason"]]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if chat:
            assert [piece["delta"].get("role") for piece in mine] == ["assistant"] + [None] * (len(mine) - 1)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk" if chat else "text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_the_chunk_that_says_length_carries_the_last_text() -> None:
    async with hello(2) as client:
        chunks = await client.stream("/v1/completions", prompt="ab", max_tokens=5)
    assert chunks[-1]["choices"][0] | {"logprobs": None} == {
        "index": 0,
        "text": "o",
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
    }


async def test_a_stream_tells_usage_where_asked_to() -> None:
    async with hello(2) as client:
        body = {"prompt": "ab", "max_tokens": 5}
        whole = await client.complete(**body)
        *others, last = await client.stream("/v1/completions", **body, stream_options={"include_usage": True})
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
        assert all(chunk["usage"] is None for chunk in others)
        every = await client.stream("/v1/completions", **body, stream_options={"continuous_usage_stats": True})
        assert [chunk["usage"]["completion_tokens"] for chunk in every] == [1, 2, 3, 4, 5]


async def test_chat_renders_the_models_template_and_joins_parts() -> None:
    prompt = "<system>be kind\n<user>one\ntwo\n<assistant>"
    async with hello(len(prompt)) as client:
        answer = await client.chat(
            max_tokens=40,
            messages=[
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            ],
        )
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": HELLO.decode()}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == NAME


async def test_without_max_tokens_chat_goes_on_to_the_end_of_the_model() -> None:
    async with client_of(language_model(script_core(b"x", 19, end=False, max_model_len=50))) as client:
        answer = await client.chat(messages=[{"role": "user", "content": "a"}], max_tokens=None)
    assert answer["usage"]["completion_tokens"] == 50 - 19
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_the_last_message_can_be_continued() -> None:
    prompt = "<user>a\n<assistant>Hell"
    async with hello(len(prompt)) as client:
        answer = await client.chat(
            messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "Hell"}],
            continue_final_message=True,
            add_generation_prompt=False,
        )
    assert answer["usage"]["prompt_tokens"] == len(prompt)


async def test_log_probabilities_of_a_completion(client: Client) -> None:
    answer = await client.complete(prompt="ab", logprobs=2, max_tokens=3, ignore_eos=True)
    found = answer["choices"][0]["logprobs"]
    assert [len(found[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [3, 3, 3, 3]
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top[token] == logprob == max(top.values())  # greedy
    assert found["text_offset"][0] == 0
    chunks = await client.stream("/v1/completions", prompt="ab", logprobs=2, max_tokens=3, ignore_eos=True)
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    for key in ("tokens", "text_offset"):
        assert [item for part in streamed if part for item in part[key]] == found[key]


async def test_log_probabilities_of_a_chat_answer(client: Client) -> None:
    answer = await client.chat(logprobs=True, top_logprobs=3, max_tokens=2, ignore_eos=True)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 2
    for item in content:
        assert len(item["top_logprobs"]) == 3
        assert item["logprob"] == item["top_logprobs"][0]["logprob"] <= 0
        assert bytes(item["bytes"]).decode() == item["token"]


async def test_echo_puts_the_prompt_first() -> None:
    async with hello(2) as client:
        answer = await client.complete(prompt="ab", echo=True, max_tokens=5)
        assert answer["choices"][0]["text"] == "abHello"
        chunks = await client.stream("/v1/completions", prompt="ab", echo=True, max_tokens=5)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abHello"


async def test_a_repeated_prompt_counts_its_cached_tokens(client: Client) -> None:
    await client.complete(prompt="x" * 20)
    again = await client.complete(prompt="x" * 20)
    assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}


async def test_defaults_come_from_the_request_then_the_deployment_then_the_model() -> None:
    """Told apart by how many tokens come, and by greedy or not."""
    plain = await _answer()
    assert (plain["usage"]["completion_tokens"]) == 16  # the API's own default
    model = await _answer(generation={"max_new_tokens": 5, "temperature": 0.0})
    assert model["usage"]["completion_tokens"] == 5
    settings = SamplingDefaults(max_tokens=3, temperature=0.0)
    deployment = await _answer(settings, generation={"max_new_tokens": 5, "temperature": 9.0})
    assert deployment["usage"]["completion_tokens"] == 3
    assert deployment["choices"][0]["text"] == model["choices"][0]["text"][: len(deployment["choices"][0]["text"])]
    request_first = await _answer(settings, max_tokens=2)
    assert request_first["usage"]["completion_tokens"] == 2


async def _answer(
    sampling: SamplingDefaults | None = None, generation: dict[str, object] | None = None, **body: object
) -> dict[str, object]:
    settings = server_settings(sampling=sampling or SamplingDefaults())
    async with client_of(language_model(**(generation or {})), settings) as client:  # type: ignore[arg-type]
        return await client.post("/v1/completions", prompt="ab", ignore_eos=True, **body)


async def test_a_deployments_seed_makes_sampling_reproducible() -> None:
    settings = SamplingDefaults(seed=7, temperature=1.0)
    assert (await _answer(settings))["choices"] == (await _answer(settings))["choices"]


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLS = b'Sure. <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


def caller(said: bytes = CALLS):  # type: ignore[no-untyped-def]
    """A server whose model writes calls, and whose template shows tools (in no place at all)."""
    return client_of(language_model(script_core(said, 1), chat_template="{{ tools and '' }}a"))


async def test_a_call_comes_as_tool_calls_whole_and_streamed() -> None:
    body = {"tools": [WEATHER], "max_tokens": 100}
    async with caller() as client:
        whole = (await client.chat(**body))["choices"][0]
        chunks = [chunk["choices"][0] for chunk in await client.stream("/v1/chat/completions", messages=USER, **body)]
    assert whole["finish_reason"] == chunks[-1]["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] == "Sure."
    (call,) = whole["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "weather", "arguments": '{"city": "Rome"}'})
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == "Sure."
    first, *rest = [piece for chunk in chunks for piece in chunk["delta"].get("tool_calls", [])]
    assert first["id"].startswith("call_")
    assert first["function"]["name"] == "weather"
    arguments = "".join(piece["function"]["arguments"] for piece in [first, *rest])
    assert arguments == '{"city": "Rome"}'
    assert not any("id" in piece or "name" in piece["function"] for piece in rest)


async def test_what_is_no_call_of_a_known_function_stays_text() -> None:
    async with caller(b'{"name": "rain", "arguments": {}}') as client:
        whole = (await client.chat(tools=[WEATHER], max_tokens=100))["choices"][0]
    assert whole["message"] == {"role": "assistant", "content": '{"name": "rain", "arguments": {}}'}
    assert whole["finish_reason"] == "stop"


async def test_a_stream_interval_puts_tokens_together() -> None:
    async with hello(2) as client:
        chunks = await client.stream("/v1/completions", prompt="ab", max_tokens=12, stream_interval=4)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["H", "ello", ", wo", "rld"]


async def test_ids_of_tokens_come_where_asked_for() -> None:
    async with hello(2) as client:
        body = {"prompt": "ab", "max_tokens": 3, "return_token_ids": True}
        whole = (await client.complete(**body))["choices"][0]
        assert (whole["prompt_token_ids"], whole["token_ids"]) == ([97, 98], [*b"Hel"])
        opening, *chunks = await client.stream("/v1/completions", **body)
        assert opening["choices"][0]["prompt_token_ids"] == [97, 98]
        assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[72], [101], [108]]


async def test_the_prompt_has_log_probabilities_of_its_own(client: Client) -> None:
    body = {"prompt": "abc", "max_tokens": 2, "ignore_eos": True}
    scored = (await client.complete(**body, prompt_logprobs=2, n=2, temperature=1.0))["choices"]
    first, *others = scored[0]["prompt_logprobs"]
    assert first is None
    for letter, found in zip(b"bc", others, strict=True):
        assert found[str(letter)]["decoded_token"] == chr(letter)
        assert found[str(letter)]["logprob"] == min(item["logprob"] for item in found.values())
        assert {item["rank"] for item in found.values()} >= {1, 2}
    assert scored[1]["prompt_logprobs"] == scored[0]["prompt_logprobs"]
    echoed = (await client.complete(**body, echo=True, logprobs=0))["choices"][0]["logprobs"]
    assert echoed["token_logprobs"][0] is echoed["top_logprobs"][0] is None
    assert echoed["token_logprobs"][1:3] == [
        item[str(token)]["logprob"] for token, item in zip(b"bc", others, strict=True)
    ]
    assert echoed["text_offset"][:3] == [0, 1, 2]


async def test_echo_in_chat_repeats_the_assistants_last_message() -> None:
    prompt = "<user>a\n<assistant>He"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "He"}]
    async with client_of(language_model(script_core(b"llo", len(prompt)))) as client:
        flags = {"continue_final_message": True, "add_generation_prompt": False, "echo": True}
        answer = await client.chat(messages=messages, **flags)
    assert answer["choices"][0]["message"]["content"] == "Hello"


async def test_metadata_and_the_service_tier_are_given_back(client: Client) -> None:
    answer = await client.chat(metadata={"job": "7"}, service_tier="auto")
    assert (answer["metadata"], answer["service_tier"]) == ({"job": "7"}, "default")


async def test_an_answer_that_breaks_off_ends_in_an_error_and_done() -> None:
    async with client_of(language_model(script_core(b"x", 2, end=False))) as client:
        core = client.serving.need_generator().engine.core
        whole_step, steps = core.step, iter(range(3))

        def step():  # type: ignore[no-untyped-def]
            next(steps)
            return whole_step()

        core.step = step  # type: ignore[method-assign]
        *chunks, error = await client.stream("/v1/completions", prompt="ab", max_tokens=90)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["x"] * 3
    assert error["error"]["code"] == 500


@pytest.mark.parametrize("usage", [True, False])
async def test_a_chunk_cut_from_a_template_is_the_chunk_written_anew(client: Client, usage: bool) -> None:
    body = ChatRequest.model_validate({"messages": USER})
    generation = prepare_chat(client.serving, body)
    frames = ChunkFrames(generation, StreamOptions(include_usage=usage), Usage(1))
    for text in ('"\\/\n\r\t\x00', "\u2028é\U0001f600", GAP, "{}data: x\n\n"):
        delta = Delta(generation.requests[0].request_id, 0, text, ())
        written = frame(({"usage": None} if usage else {}) | generation.shape.chunk(generation.head, 0, delta))
        assert frames.delta(delta) == written
        assert written.count(b"\n") == 2


async def test_prefixes_are_shared_under_one_salt_only(client: Client) -> None:
    cached = []
    for salt in ("a", "a", "b", None):
        answer = await client.complete(prompt="y" * 20, cache_salt=salt, max_tokens=1)
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached == [0, 16, 0, 0]

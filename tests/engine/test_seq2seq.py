"""Encoder-decoders behind /v1/completions: the answers are the model's own, whoever asks beside, and however."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import aiohttp
import pytest
import torch
from aiohttp import web
from transformers import MarianMTModel, PegasusForConditionalGeneration

from kubeformer.contract.base import Location
from kubeformer_runtime.engine.async_engine import EngineDeadError
from kubeformer_runtime.engine.loading import load_engine
from kubeformer_runtime.engine.seq2seq import Seq2SeqEngine, Source, Written
from kubeformer_runtime.engine.seq2seq_model import Seq2SeqModel
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.seq2seq import Seq2Seq
from kubeformer_runtime.model.seq2seq_config import Seq2SeqConfig
from kubeformer_runtime.model.weights import save
from kubeformer_runtime.server.app import make_app
from kubeformer_runtime.server.serving import Serving
from tests.unit.engine.builders import VOCABULARY, byte_tokenizer
from tests.unit.server.builders import ALIAS, NAME, Client, client_of, server_settings

PAD, BOS, EOS = 256, 257, 258
TEXTS = ["a cat", "Every dog in town looked at the mat while it rained.", "x", "the the the", "Zwei, drei?"]
LENGTH, MOST = 64, 10
DEADLINE = 60.0


def write_directory(path: Path, layout: str) -> Path:
    """A model that has begun to learn to copy words: its answers differ, and end after a few tokens or after many."""
    torch.manual_seed(3)
    config = Seq2SeqConfig(
        vocabulary_size=VOCABULARY, width=32, encoder_layers=1, decoder_layers=2, heads=2, mlp_width=48,
        max_length=LENGTH, eos_token_id=EOS, pad_token_id=PAD, start_token_id=BOS, bos_token_id=BOS,
        layout=layout, dropout=0.0, suppressed=(PAD, BOS),
    )  # fmt: skip
    model = Seq2Seq(config)
    learn_to_copy(model)
    save(path, model)
    byte_tokenizer().tokenizer.save(str(path / "tokenizer.json"))
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    (path / "tokenizer_config.json").write_text(json.dumps(special))
    card = {"settings": {"data": {"prepare": {"normalize": "NFKC"}}}}
    (path / "kubeformer.json").write_text(json.dumps(card))
    return path


def learn_to_copy(model: Seq2Seq) -> None:
    """A few steps over texts of 1 to 20 letters."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        length_B = torch.randint(1, 21, (16,))
        text_BT = torch.randint(97, 123, (16, 21))
        text_BT[torch.arange(21) > length_B[:, None]] = PAD
        text_BT[torch.arange(16), length_B] = EOS
        given_BT = torch.cat((torch.full((16, 1), BOS), text_BT), dim=1)
        logit_BTV = model(given_BT, length_B + 2, given_BT[:, :-1])
        loss = torch.nn.functional.cross_entropy(logit_BTV.flatten(0, 1), text_BT.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def loaded(path: Path, **changes: object) -> Seq2SeqModel:
    """The directory as a server loads it."""
    location = Location(uri="pvc://models/tiny", path=str(path))
    model = load_engine(server_settings(model=location, **changes), threads=1)
    assert isinstance(model, Seq2SeqModel)
    return model


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each layout; tests only read them."""
    return {layout: write_directory(tmp_path_factory.mktemp(layout), layout) for layout in ("marian", "pegasus")}


@pytest.fixture
def directory(directories: dict[str, Path]) -> Path:
    """The layout that a textToText has from scratch."""
    return directories["pegasus"]


@pytest.fixture
def model(directory: Path) -> Seq2SeqModel:
    """Loaded anew, so that a test may change it."""
    return loaded(directory)


def alone(model: Seq2SeqModel, text: str, most: int, beams: int = 1, penalty: float = 1.0) -> list[int]:
    """What the plain model writes for one text."""
    ids = model.encode([text])[0]
    return model.model.generate(torch.tensor([ids]), torch.tensor([len(ids)]), most, beams, penalty)[0]


async def collected(engine: Seq2SeqEngine, sources: list[Source]) -> dict[int, Written]:
    """All answers of the engine."""
    async with aclosing(engine.write(sources)) as answers:
        return {place: written async for place, written in answers}


@pytest.mark.parametrize(("layout", "kind"), [("marian", MarianMTModel), ("pegasus", PegasusForConditionalGeneration)])
async def test_answers_are_those_of_the_model_and_of_transformers(
    directories: dict[str, Path], layout: str, kind: type
) -> None:
    served = loaded(directories[layout])
    theirs = kind.from_pretrained(directories[layout]).eval()  # type: ignore[attr-defined]
    async with client_of(served) as client:
        for beams in (1, 3):
            fields: dict[str, object] = {"use_beam_search": True, "best_of": beams} if beams > 1 else {}
            answer = await client.post("/v1/completions", prompt=TEXTS, max_tokens=MOST, **fields)
            written = 0
            for text, choice in zip(TEXTS, answer["choices"], strict=True):
                ours = alone(served, text, MOST, beams)
                source_1S = torch.tensor(served.encode([text]))
                found = theirs.generate(source_1S, max_new_tokens=MOST, num_beams=beams, do_sample=False)[
                    0, 1:
                ].tolist()
                assert ours == [token for token in found if token not in (EOS, PAD)]
                assert choice["text"] == served.tokenizer.decode(ours)
                assert choice["finish_reason"] == ("length" if len(ours) == MOST else "stop")
                written += min(MOST, len(ours) + 1)  # <eos> was written, too
            usage = answer["usage"]
            assert usage["prompt_tokens"] == sum(map(len, served.encode(TEXTS)))
            assert (usage["completion_tokens"], usage["total_tokens"]) == (written, written + usage["prompt_tokens"])


def test_the_models_answers_end_in_both_ways(model: Seq2SeqModel) -> None:
    lengths = [len(alone(model, text, MOST)) for text in TEXTS]
    assert min(lengths) < MOST
    assert max(lengths) == MOST
    assert len(set(lengths)) > 2


async def test_sources_that_wait_at_the_same_moment_share_a_batch_and_get_what_they_get_alone(
    model: Seq2SeqModel,
) -> None:
    sizes, start = list[int](), model.model.start

    def counted(source_BS: torch.Tensor, length_B: torch.Tensor) -> object:
        sizes.append(len(source_BS))
        return start(source_BS, length_B)

    sources, expected = list[Source](), list[list[int]]()
    for beams, penalty in ((1, 1.0), (2, 1.0), (2, 0.3)):
        for index, text in enumerate(TEXTS):
            most = 6 + 5 * index if beams == 1 else 12
            sources.append(Source(model.encode([text])[0], most, beams, penalty))
            expected.append(alone(model, text, most, beams, penalty))
    model.model.start = counted  # type: ignore[method-assign, assignment]
    engine = Seq2SeqEngine(model.model, max_rows=10)
    engine.start()
    answers = await collected(engine, sources)
    assert [answers[place].tokens for place in range(len(sources))] == expected
    assert sizes == [5, 5, 5]
    sizes.clear()
    await collected(engine, [Source(source.tokens, 4, 3) for source in sources[:5]])
    assert sizes == [3, 2]  # of three hypotheses each
    await engine.close()
    assert not engine.alive
    with pytest.raises(EngineDeadError):
        await collected(engine, sources)


async def test_texts_are_cleaned_as_in_training_and_names_and_pages_are_as_for_other_models(
    model: Seq2SeqModel,
) -> None:
    async with client_of(model) as client:
        plain = await client.complete(prompt="fine cats\nsit")
        strange = await client.complete(prompt=" \ufb01ne   cats \r\nsit\x07 ", model=ALIAS)
        assert plain["choices"] == strange["choices"]
        assert (plain["model"], strange["model"], plain["object"]) == (NAME, ALIAS, "text_completion")
        assert plain["usage"] == strange["usage"]
        whole = await client.post("/v1/completions", prompt="x")  # as many tokens as the model has positions for
        assert whole["choices"][0]["text"] == model.tokenizer.decode(alone(model, "x", LENGTH))
        models = json.loads((await client.get("/v1/models"))[1])["data"]
        assert [(item["id"], item["max_model_len"]) for item in models] == [(NAME, LENGTH), (ALIAS, LENGTH)]
        assert await client.get("/health") == (200, '{"status": "ready"}')
        assert await client.metric("vllm:prompt_tokens_total") == 2 * plain["usage"]["prompt_tokens"] + 3
        assert await client.metric("vllm:num_requests_running") == 0
        done = [await client.metric(f'vllm:request_success_total{{finished_reason="{n}"}}') for n in ("stop", "length")]
        assert sum(done) == 3


async def test_a_stream_brings_each_answer_and_then_the_usage(model: Seq2SeqModel) -> None:
    async with client_of(model) as client:
        whole = await client.complete(prompt=TEXTS)
        *chunks, last = await client.stream("/v1/completions", prompt=TEXTS, stream_options={"include_usage": True})
        choices = sorted((choice for chunk in chunks for choice in chunk["choices"]), key=lambda item: item["index"])
        assert choices == whole["choices"]
        assert {chunk["usage"] for chunk in chunks} == {None}
        assert (last["choices"], last["usage"]) == ([], whole["usage"])
        assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
        *_, counted = await client.stream(
            "/v1/completions", prompt="x", stream_options={"continuous_usage_stats": True}
        )
        assert counted["usage"]["completion_tokens"] >= 1


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"temperature": 0.7}, "temperature"),
    ({"n": 2}, "n"),
    ({"top_p": 0.9}, "top_p"),
    ({"seed": 1}, "seed"),
    ({"stop": "a"}, "stop"),
    ({"logprobs": 0}, "logprobs"),
    ({"echo": True}, "echo"),
    ({"suffix": "a"}, "suffix"),
    ({"ignore_eos": True}, "ignore_eos"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"best_of": 4}, "best_of"),
    ({"best_of": 17, "use_beam_search": True}, "best_of"),
    ({"use_beam_search": True}, "best_of"),
    ({"length_penalty": 2.0}, "length_penalty"),
    ({"length_penalty": 99.0, "best_of": 2, "use_beam_search": True}, "length_penalty"),
    ({"stream_options": {}}, "stream_options"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": LENGTH}, "max_tokens"),
    ({"prompt": " \n\t"}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": "a" * LENGTH}, "prompt"),
    ({"prompt": [1, 2]}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"nonsense": 1}, "nonsense"),
]


async def test_what_does_not_apply_is_refused_by_name_and_what_says_nothing_is_not(model: Seq2SeqModel) -> None:
    async with client_of(model) as client:
        for fields, name in REFUSED:
            error = (await client.post("/v1/completions", 400, **{"prompt": "a", **fields}))["error"]
            assert error["param"] == name, (fields, error)
            assert name in error["message"], (fields, error)
        usual = {"n": 1, "best_of": 1, "top_p": 1, "top_k": -1, "echo": False, "suffix": "", "logit_bias": {}}
        assert (await client.complete(prompt="a", **usual))["choices"] == (await client.complete(prompt="a"))["choices"]
        assert "/v1/completions" in (await client.chat(400))["error"]["message"]
        assert "/v1/completions" in (await client.post("/v1/embeddings", 400, input="a"))["error"]["message"]
        assert "encoder-decoder" in (await client.post("/sleep", 400))["error"]["message"]
        assert (await client.complete(404, prompt="a", model="other"))["error"]["param"] == "model"


def test_settings_that_would_have_no_effect_are_refused(directory: Path) -> None:
    for changes, name in (
        ({"quantization": "Int8"}, "engine.quantization"),
        ({"speculative_tokens": 2}, "engine.speculativeTokens"),
        ({"sampling": {"temperature": 0.5}}, "sampling.temperature"),
        ({"max_model_length": LENGTH + 1}, "engine.maxModelLength"),
    ):
        with pytest.raises(ModelError, match=name):
            loaded(directory, **changes)
    model = loaded(directory, max_model_length=20, numerics="Reproducible", sampling={"max_tokens": 5})
    assert (model.max_model_len, model.most_tokens, model.max_rows, model.usual_tokens) == (20, 20, 1, 5)


class Gate:
    """Stops the engine before every step until it is opened; counts the steps that were made."""

    def __init__(self, model: Seq2Seq) -> None:
        self.reached, self.open, self.steps = threading.Event(), threading.Event(), 0
        self._step = model.step
        model.step = self.step  # type: ignore[method-assign, assignment]

    def step(self, *given: object) -> torch.Tensor:
        self.reached.set()
        assert self.open.wait(DEADLINE)
        self.steps += 1
        return self._step(*given)  # type: ignore[arg-type]


@pytest.fixture
def gate(model: Seq2SeqModel) -> Iterator[Gate]:
    """Before the model of the same test; opened at the end whatever comes."""
    gate = Gate(model.model)
    yield gate
    gate.open.set()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("beams", [1, 2])
async def test_nothing_more_is_written_for_a_client_that_vanished(
    model: Seq2SeqModel, gate: Gate, stream: bool, beams: int
) -> None:
    serving = Serving(server_settings())
    serving.install(model)
    runner = web.AppRunner(make_app(serving), handler_cancellation=True)  # as server/main.py has it
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as http, asyncio.timeout(DEADLINE):

        async def ask(**fields: object) -> bytes:
            async with http.post("/v1/completions", json={"prompt": TEXTS[1], **fields}) as response:
                return await response.read()

        impatient = asyncio.create_task(ask(stream=stream, use_beam_search=beams > 1, best_of=beams))
        await asyncio.to_thread(gate.reached.wait, DEADLINE)
        impatient.cancel()
        await serving.idle.wait()
        gate.open.set()
        answer = json.loads(await ask(max_tokens=1))
        assert answer["usage"]["completion_tokens"] == 1
        assert gate.steps == 2  # the one under way, and that of the answer
        assert serving.alive
    await runner.cleanup()
    await serving.close()


async def test_an_engine_that_closes_writes_what_waits(model: Seq2SeqModel, gate: Gate) -> None:
    engine = Seq2SeqEngine(model.model, max_rows=1)
    engine.start()
    sources = [Source(ids, 4) for ids in model.encode(TEXTS)]
    answers = asyncio.create_task(collected(engine, sources))
    await asyncio.to_thread(gate.reached.wait, DEADLINE)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    gate.open.set()
    assert {place: written.tokens for place, written in (await answers).items()} == {
        place: alone(model, text, 4) for place, text in enumerate(TEXTS)
    }
    await closing


async def test_an_engine_that_breaks_answers_500_and_is_no_longer_healthy(model: Seq2SeqModel) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("no memory")

    model.model.step = broken  # type: ignore[method-assign, assignment]
    async with client_of(model) as client:
        await fails(client)


async def fails(client: Client) -> None:
    """A stream breaks off with an error; from then on the server says what it is."""
    async with client.http.post("/v1/completions", json={"prompt": ["a", "b"], "stream": True}) as response:
        error, done, _ = (await response.text()).split("\n\n")
    assert (json.loads(error.removeprefix("data: "))["error"]["code"], done) == (500, "data: [DONE]")
    await client.complete(503, prompt="a")
    assert (await client.get("/health"))[0] == 503

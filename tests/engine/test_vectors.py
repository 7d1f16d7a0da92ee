"""POST /v1/embeddings /score /rerank /classify /pooling over encoders: vLLM's shapes, transformers' numbers."""

import base64
import json
import math
import struct
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import torch
from openai import AsyncOpenAI
from transformers import BertForSequenceClassification, BertModel, XLMRobertaForSequenceClassification

from kubeformer_runtime.server.pooling import cosine
from tests.engine.encoder_builders import BERT, TEXTS, XLM, directory_of, loaded
from tests.unit.server.builders import NAME, Client, client_of, language_model


def embedder(path: Path, **more: object) -> AbstractAsyncContextManager[Client]:
    return client_of(loaded(directory_of(path, BertModel, BERT, **more)))


def vector(text: str) -> list[float]:
    """Numbers out of base64."""
    raw = base64.b64decode(text)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


async def test_embeddings_come_as_floats_base64_and_for_token_ids(tmp_path: Path) -> None:
    async with embedder(tmp_path) as client:
        answer = await client.post("/v1/embeddings", model=NAME, input=TEXTS)
        assert [item["index"] for item in answer["data"]] == [0, 1, 2, 3]
        for item in answer["data"]:
            assert math.hypot(*item["embedding"]) == pytest.approx(1.0, abs=1e-6)
        tokens = [(await client.post("/tokenize", prompt=text))["tokens"] for text in TEXTS]
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == sum(map(len, tokens))
        written = await client.post("/v1/embeddings", input=tokens, encoding_format="base64")
        for left, right in zip(answer["data"], written["data"], strict=True):
            assert vector(right["embedding"]) == pytest.approx(left["embedding"], abs=1e-6)
        single = await client.post("/v1/embeddings", input=tokens[1])
        assert single["data"][0]["embedding"] == pytest.approx(answer["data"][1]["embedding"], abs=1e-6)
        raw = await client.post("/v1/embeddings", input=TEXTS[0], use_activation=False)
        assert math.hypot(*raw["data"][0]["embedding"]) != pytest.approx(1.0, abs=1e-2)
        pooled = await client.post("/pooling", input=TEXTS[0])
        assert pooled["data"][0]["data"] == pytest.approx(answer["data"][0]["embedding"], abs=1e-6)
        assert await client.metric('vllm:request_success_total{finished_reason="stop"}') == 4 + 4 + 1 + 1 + 1


async def test_openais_client_reads_embeddings(tmp_path: Path) -> None:
    async with embedder(tmp_path) as client:
        openai = AsyncOpenAI(base_url=str(client.http.make_url("/v1")), api_key="none")
        found = await openai.embeddings.create(model=NAME, input=TEXTS)  # asks for base64 by itself
        floats = await client.post("/v1/embeddings", input=TEXTS)
        assert found.data[1].embedding == pytest.approx(floats["data"][1]["embedding"], abs=1e-6)
        await openai.close()


async def test_dimensions_are_for_models_that_were_trained_for_them(tmp_path: Path) -> None:
    async with embedder(tmp_path / "plain") as client:
        assert "matryoshka" in (await client.post("/v1/embeddings", 400, input="a", dimensions=8))["error"]["message"]
        await client.post("/v1/embeddings", input="a", dimensions=32)
    async with embedder(tmp_path / "cut", matryoshka_dimensions=[8, 16]) as client:
        whole = (await client.post("/v1/embeddings", input="a"))["data"][0]["embedding"]
        short = (await client.post("/v1/embeddings", input="a", dimensions=8))["data"][0]["embedding"]
        assert math.hypot(*short) == pytest.approx(1.0, abs=1e-6)
        assert short == pytest.approx([value / math.hypot(*whole[:8]) for value in whole[:8]], abs=1e-6)
        error = (await client.post("/v1/embeddings", 400, input="a", dimensions=9))["error"]
        assert (error["param"], "8, 16" in error["message"]) == ("dimensions", True)


async def test_an_embedder_scores_by_the_cosine_and_reranks(tmp_path: Path) -> None:
    async with embedder(tmp_path) as client:
        vectors = [item["embedding"] for item in (await client.post("/v1/embeddings", input=TEXTS))["data"]]
        answer = await client.post("/v1/score", text_1=TEXTS[0], text_2=TEXTS)
        scores = [item["score"] for item in answer["data"]]
        assert scores == pytest.approx([cosine(vectors[0], other) for other in vectors], abs=1e-5)
        assert scores[0] == pytest.approx(1.0, abs=1e-5)
        pairs = await client.post("/score", text_1=TEXTS, text_2=TEXTS)
        assert [item["score"] for item in pairs["data"]] == pytest.approx([1.0] * 4, abs=1e-5)
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            ranked = await client.post(path, query=TEXTS[0], documents=TEXTS, top_n=3)
            found = [item["relevance_score"] for item in ranked["results"]]
            assert found == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-5)
            assert ranked["results"][0]["index"] == 0
            assert ranked["results"][0]["document"] == {"text": TEXTS[0]}


async def test_a_cross_encoder_scores_pairs_as_transformers_does(tmp_path: Path) -> None:
    path = directory_of(tmp_path, XLMRobertaForSequenceClassification, XLM)
    model = loaded(path)
    reference = XLMRobertaForSequenceClassification.from_pretrained(path).eval()
    expected = []
    for text in TEXTS:
        with torch.inference_mode():
            tokens = model.encode("a dog", text, field="text").tokens
            expected.append(torch.sigmoid(reference(torch.tensor([tokens])).logits)[0, 0].item())
    async with client_of(model) as client:
        answer = await client.post("/score", text_1="a dog", text_2=TEXTS)
        assert [item["score"] for item in answer["data"]] == pytest.approx(expected, abs=1e-5)
        ranked = await client.post("/rerank", query="a dog", documents=TEXTS)
        order = [item["index"] for item in ranked["results"]]
        assert order == sorted(range(4), key=lambda index: -expected[index])
        raw = await client.post("/score", text_1="a dog", text_2=TEXTS[0], use_activation=False)
        assert 1 / (1 + math.exp(-raw["data"][0]["score"])) == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
async def test_classes_are_read_as_the_directory_says(tmp_path: Path, problem: str) -> None:
    path = directory_of(tmp_path, BertForSequenceClassification, BERT, problem_type=problem)
    names = json.loads((path / "config.json").read_text())["id2label"]
    read = {
        "single_label_classification": lambda logits: torch.softmax(logits, -1),
        "multi_label_classification": torch.sigmoid,
        "regression": lambda logits: logits,
    }[problem]
    model = loaded(path)
    expected = [read(torch.tensor(row)) for row in model.compute([model.encode(t, field="t") for t in TEXTS])]
    async with client_of(model) as client:
        for item, row in zip((await client.post("/classify", input=TEXTS))["data"], expected, strict=True):
            assert item["probs"] == pytest.approx(row.tolist(), abs=1e-5)
            assert item["label"] == names[str(int(row.argmax()))]
        assert "3 labels" in (await client.post("/score", 400, text_1="a", text_2="b"))["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": [[]]}, "input.0"),
        ("/v1/embeddings", {"input": [1, "a"]}, "input.1"),
        ("/v1/embeddings", {"input": [40]}, "input"),
        ("/v1/embeddings", {"input": [-1]}, "input"),
        ("/v1/embeddings", {"input": "cat " * 30}, "input"),
        ("/v1/embeddings", {"input": "", "add_special_tokens": False}, "input"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 99}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": [4], "truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "user": "me"}, "user"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/score", {"text_1": "a"}, "text_2"),
        ("/score", {"text_1": "a", "text_2": "b", "use_activation": False}, "use_activation"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n"),
        ("/rerank", {"query": "a", "documents": ["a"], "return_documents": True}, "return_documents"),
    ],
    ids=str,
)
async def test_a_bad_request_names_its_field_and_hurts_nobody(
    tmp_path: Path, path: str, body: dict[str, object], param: str
) -> None:
    async with embedder(tmp_path) as client:
        assert (await client.post(path, 400, **body))["error"]["param"] == param
        await client.post("/v1/embeddings", input="a cat")


async def test_the_wrong_kind_of_model_says_what_to_send(tmp_path: Path) -> None:
    async with embedder(tmp_path) as client:
        assert "/v1/embeddings" in (await client.post("/classify", 400, input="a"))["error"]["message"]
        assert "/v1/embeddings" in (await client.complete(400, prompt="a"))["error"]["message"]
        assert (await client.post("/v1/embeddings", 404, model="other", input="a"))["error"]["param"] == "model"
    async with client_of(language_model()) as client:
        for path, body in (
            ("/v1/embeddings", {"input": "a"}),
            ("/score", {"text_1": "a", "text_2": "b"}),
            ("/rerank", {"query": "a", "documents": ["b"]}),
        ):
            assert "/v1/chat/completions" in (await client.post(path, 400, **body))["error"]["message"]


async def test_long_texts_are_cut_where_the_client_asks_for_it(tmp_path: Path) -> None:
    async with embedder(tmp_path) as client:
        cut = await client.post("/v1/embeddings", input="cat " * 30, truncate_prompt_tokens=-1)
        assert cut["usage"]["prompt_tokens"] == 24
        short = await client.post("/v1/embeddings", input="a cat sat", truncate_prompt_tokens=4)
        same = await client.post("/v1/embeddings", input="a cat")
        assert short["data"][0]["embedding"] == pytest.approx(same["data"][0]["embedding"], abs=1e-6)

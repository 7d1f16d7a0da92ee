"""A server in this process: the application over a tiny engine, and a client that speaks to it over loopback."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import torch
from aiohttp.test_utils import TestClient, TestServer

from kubeformer.contract.base import Location
from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.engine.core import EngineCore
from kubeformer_runtime.engine.loading import ClassifierModel, LanguageModel
from kubeformer_runtime.server.app import make_app
from kubeformer_runtime.server.serving import Serving
from tests.unit.engine.builders import CHAT_TEMPLATE, VOCABULARY, byte_tokenizer, tiny_core
from tests.unit.model.builders import classifier_config, random_classifier

NAME, ALIAS = "tiny", "tiny-alias"


def server_settings(**changes: object) -> ServerSettings:
    """Settings as the operator writes them."""
    fields = {
        "name": "tiny",
        "namespace": "default",
        "model": Location(uri="pvc://models/tiny", path="/nowhere"),
        "served_names": [NAME, ALIAS],
        "drain_seconds": 30,
        **changes,
    }
    return ServerSettings(**fields)  # type: ignore[arg-type]


def language_model(
    core: EngineCore | None = None, *, chat_template: str | None = CHAT_TEMPLATE, **generation: object
) -> LanguageModel:
    """A model in memory; `generation` stands for generation_config.json."""
    core = core or tiny_core()
    return LanguageModel(
        core,
        byte_tokenizer(chat_template),
        dict(generation),
        VOCABULARY,
        core.config.max_model_len,
        torch.float32,
        None,
    )


def classifier_model() -> ClassifierModel:
    """A classifier over the byte tokenizer."""
    model = random_classifier(classifier_config(vocabulary_size=VOCABULARY))
    return ClassifierModel(model, byte_tokenizer(), "NFKC", 16, torch.float32, "sha256:1234")


@dataclass
class Client:
    """A client of one server."""

    http: "TestClient[Any, Any]"
    serving: Serving

    async def post(self, path: str, status: int = 200, /, **body: object) -> dict[str, Any]:
        """Send JSON; the answer's JSON."""
        async with self.http.post(path, json=body) as response:
            document: dict[str, Any] = await response.json()
            assert response.status == status, document
            return document

    async def complete(self, status: int = 200, /, **body: object) -> dict[str, Any]:
        """POST /v1/completions; greedy and short unless `body` says otherwise."""
        return await self.post("/v1/completions", status, **{"temperature": 0, "max_tokens": 8, **body})

    async def chat(self, status: int = 200, /, **body: object) -> dict[str, Any]:
        """POST /v1/chat/completions."""
        fields = {"temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}], **body}
        return await self.post("/v1/chat/completions", status, **fields)

    async def stream(self, path: str, **body: object) -> list[dict[str, Any]]:
        """The chunks of a streamed answer; it has to end in [DONE]."""
        fields: dict[str, object] = {"temperature": 0, "max_tokens": 8, "stream": True, **body}
        async with self.http.post(path, json=fields) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            frames = (await response.text()).split("\n\n")
        assert frames.pop() == ""
        assert frames.pop() == "data: [DONE]"
        return [json.loads(frame.removeprefix("data: ")) for frame in frames]

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body."""
        async with self.http.get(path) as response:
            return response.status, await response.text()

    async def metric(self, name: str) -> float:
        """The value of one sample, e.g. `vllm:prompt_tokens_total`; labels may follow the name."""
        _, page = await self.get("/metrics")
        wanted, _, labels = name.partition("{")
        for line in page.splitlines():
            if line.startswith(wanted + "{") and all(part in line for part in labels.rstrip("}").split(",")):
                return float(line.split()[-1])
        raise AssertionError(f"there is no {name} in\n{page}")


@asynccontextmanager
async def client_of(
    model: LanguageModel | ClassifierModel | None = None, settings: ServerSettings | None = None
) -> AsyncIterator[Client]:
    """A running server with a client; without a model it is still loading."""
    serving = Serving(settings or server_settings())
    if model is not None:
        serving.install(model)
    http = TestClient(TestServer(make_app(serving)), timeout=aiohttp.ClientTimeout(total=60))
    await http.start_server()
    try:
        yield Client(http, serving)
    finally:
        await http.close()
        await serving.close()

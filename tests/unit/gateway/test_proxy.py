"""One URL for all deployments: the gateway passes requests to the replicas of the model they name."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from kubeformer.contract.names import LABEL_MODEL_DEPLOYMENT
from kubeformer.gateway.catalog import Catalog
from kubeformer.gateway.metrics import Metrics
from kubeformer.gateway.proxy import Proxy
from kubeformer.gateway.server import application

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """A gateway on loopback, with replicas that a test makes up."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.catalog = Catalog()
        self._stack = stack

    async def start(self) -> TestClient[Any, Any]:
        session = await self._stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        metrics = Metrics()
        proxy = Proxy(self.catalog, session, metrics, asyncio.get_running_loop().time)
        return await self._stack.enter_async_context(TestClient(TestServer(application(proxy, metrics, lambda: True))))

    async def replica(self, handler: Handler) -> int:
        """A replica that answers everything with `handler`; its port on loopback."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        server = await self._stack.enter_async_context(TestServer(app))
        assert server.port is not None
        return server.port

    def deploy(self, name: str, *ports: int, served: list[str] | None = None, reason: str = "") -> None:
        spec: dict[str, Any] = {"model": {"uri": "pvc://m/m"}}
        if served:
            spec["model"]["servedNames"] = served
        condition = {"type": "Ready", "status": "False", "reason": reason, "message": "wait for it"}
        status = {"conditions": [condition]} if reason else {}
        meta = {"name": name, "namespace": "team", "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.catalog.changed("ModelDeployment", {"metadata": meta, "spec": spec, "status": status})
        labels = {LABEL_MODEL_DEPLOYMENT: name}
        for port in ports:
            piece = {
                "metadata": {"name": f"{name}-{port}", "namespace": "team", "labels": labels},
                "ports": [{"port": port}],
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
            }
            self.catalog.changed("EndpointSlice", piece)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        yield Gateway(stack)


async def echo(request: web.Request) -> web.Response:
    return web.json_response({"path": request.path, "body": await request.json()})


async def test_the_models_name_says_who_answers(gateway: Gateway) -> None:
    async def one(_: web.Request) -> web.Response:
        return web.Response(text="one")

    async def two(_: web.Request) -> web.Response:
        return web.Response(text="two")

    gateway.deploy("a", await gateway.replica(one))
    gateway.deploy("b", await gateway.replica(two))
    client = await gateway.start()
    for model, expected in (("a", "one"), ("b", "two"), ("team/a", "one")):
        answer = await client.post("/v1/completions", json={"model": model})
        assert await answer.text() == expected


async def test_a_qualified_name_reaches_the_replica_as_a_name_it_knows(gateway: Gateway) -> None:
    gateway.deploy("a", await gateway.replica(echo), served=["assistant"])
    client = await gateway.start()
    for path in ("/classify", "/v1/embeddings", "/v1/responses", "/v2/rerank", "/tokenize"):
        answer = await (await client.post(path, json={"model": "team/a", "input": "hello"})).json()
        assert answer == {"path": path, "body": {"model": "assistant", "input": "hello"}}


async def test_an_unknown_model_is_404_and_the_answer_lists_the_known_ones(gateway: Gateway) -> None:
    gateway.deploy("a", 1)
    client = await gateway.start()
    answer = await client.post("/v1/completions", json={"model": "nope"})
    assert answer.status == 404
    message = (await answer.json())["error"]["message"]
    assert message == "model: nobody serves 'nope'; the models here are: a"


async def test_a_model_without_a_ready_replica_is_503_with_the_conditions_words(gateway: Gateway) -> None:
    gateway.deploy("a", reason="ModelNotReady")
    client = await gateway.start()
    answer = await client.post("/v1/completions", json={"model": "a"})
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert "ModelNotReady: wait for it" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "body: not JSON"),
        (b"[]", "body: must be a JSON object"),
        (b"{}", "model: must be the name of a model, not null"),
        (b'{"model": 7}', "model: must be the name of a model, not 7"),
    ],
)
async def test_bad_input_is_400_and_names_the_field(gateway: Gateway, body: bytes, sentence: str) -> None:
    client = await gateway.start()
    answer = await client.post("/v1/completions", data=body)
    assert answer.status == 400
    assert (await answer.json())["error"]["message"].startswith(sentence)


async def test_a_stream_is_passed_on_piece_by_piece(gateway: Gateway) -> None:
    next_piece = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await next_piece.wait()
        await response.write(b"data: 2\n\n")
        return response

    gateway.deploy("a", await gateway.replica(stream))
    client = await gateway.start()
    answer = await client.post("/v1/chat/completions", json={"model": "a", "stream": True})
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert await answer.content.readany() == b"data: 1\n\n"  # the second is not even written yet
    next_piece.set()
    assert await answer.content.read() == b"data: 2\n\n"


async def test_a_replica_that_is_gone_or_drains_costs_the_client_nothing(gateway: Gateway) -> None:
    async def drains(_: web.Request) -> web.Response:
        return web.Response(status=503)

    gateway.deploy("a", 1, await gateway.replica(drains), await gateway.replica(echo))
    client = await gateway.start()
    for _ in range(6):
        answer = await client.post("/v1/completions", json={"model": "a"})
        assert answer.status == 200


async def test_when_no_replica_answers_the_error_says_so(gateway: Gateway) -> None:
    gateway.deploy("a", 1)
    client = await gateway.start()
    answer = await client.post("/v1/completions", json={"model": "a"})
    assert answer.status == 502
    assert "1 replica(s) of 'a' did not answer" in (await answer.json())["error"]["message"]


async def test_a_stream_that_breaks_does_not_look_finished(gateway: Gateway) -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    gateway.deploy("a", await gateway.replica(breaks))
    client = await gateway.start()
    answer = await client.post("/v1/completions", json={"model": "a"})
    with pytest.raises(aiohttp.ClientError):
        await answer.read()


async def test_errors_of_the_replica_reach_the_client_as_they_are(gateway: Gateway) -> None:
    async def refuses(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "top_p: must be at most 1"}}, status=400)

    gateway.deploy("a", await gateway.replica(refuses))
    client = await gateway.start()
    answer = await client.post("/v1/completions", json={"model": "a", "top_p": 2})
    assert answer.status == 400
    assert (await answer.json())["error"]["message"] == "top_p: must be at most 1"


async def test_only_models_with_a_ready_replica_are_listed_and_requests_are_counted(gateway: Gateway) -> None:
    gateway.deploy("a", await gateway.replica(echo))
    gateway.deploy("b")
    client = await gateway.start()
    listed = await (await client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["a"]
    await client.post("/v1/completions", data=json.dumps({"model": "a"}))
    exposition = await (await client.get("/metrics")).text()
    assert 'kubeformer_gateway_requests_total{model="team/a",status="200"} 1.0' in exposition

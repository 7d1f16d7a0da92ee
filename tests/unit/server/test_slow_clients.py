"""Clients that do not read, do not send or send too much: their own request ends, and nobody else notices."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from kubeformer_runtime.engine.async_engine import AsyncEngine, BacklogError
from kubeformer_runtime.engine.core import Delta
from kubeformer_runtime.server import bodies
from kubeformer_runtime.server.app import make_app
from kubeformer_runtime.server.serving import Serving
from tests.unit.engine.builders import request, script_core, until
from tests.unit.server.builders import Client, language_model, server_settings

BUFFER = 4096
USER = [{"role": "user", "content": "a"}]


def small_buffers(host: str, port: int, family: socket.AddressFamily) -> socket.socket:
    """A listening socket whose connections fill after a few frames."""
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    listening.bind((host, port))
    return listening


@asynccontextmanager
async def impatient_server() -> AsyncIterator[Client]:
    """A server that waits 0.3 s for a client to read."""
    serving = Serving(server_settings())
    serving.install(language_model(script_core(b"x", 19, end=False)))
    http = TestClient(TestServer(make_app(serving, stall_seconds=0.3), socket_factory=small_buffers))
    await http.start_server()
    try:
        yield Client(http, serving)
    finally:
        await http.close()
        await serving.close()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_does_not_read_its_answer_is_cut_off(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"messages": USER, "max_tokens": 180, "logprobs": True, "top_logprobs": 20, "stream": stream}
    body = json.dumps(fields).encode()  # for an answer of some 300 KB
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    async with impatient_server() as client:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", client.http.port))
            await loop.sock_sendall(slow, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert (await client.chat(messages=USER, max_tokens=3))["choices"][0]["message"]["content"] == "xxx"
            await until(lambda: "the client read nothing" in caplog.text)
            await until(lambda: client.serving.active == 0)
        assert (await client.chat(messages=USER, max_tokens=3))["choices"][0]["message"]["content"] == "xxx"


async def read_late(batches: AsyncIterator[list[Delta]], engine: AsyncEngine) -> None:
    """Read a first batch, and on only once the engine has given this reader up."""
    async for _ in batches:
        await until(lambda: not engine.num_requests)


async def test_a_consumer_that_falls_behind_loses_its_requests_and_they_leave_the_engine() -> None:
    engine = AsyncEngine(script_core(b"x", 2, end=False), max_backlog=5)
    engine.start()
    try:
        async with aclosing(engine.batches([request("r", b"ab", max_tokens=100)])) as batches:
            with pytest.raises(BacklogError):
                await read_late(batches, engine)
        await until(lambda: not engine.core.has_work)
        async with aclosing(engine.generate([request("s", b"ab", max_tokens=3)])) as deltas:
            assert "".join([delta.text async for delta in deltas]) == "xxx"
    finally:
        await engine.close()


async def test_a_body_that_does_not_arrive_is_not_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.http.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: 100\r\n\r\n{")
    assert b" 408 " in await reader.readline()
    writer.close()
    await until(lambda: client.serving.active == 0)


async def test_a_body_that_is_too_large_is_refused(client: Client) -> None:
    body = b'{"prompt": "' + b"a" * bodies.MAX_BODY + b'"}'
    headers = {"Content-Type": "application/json"}
    try:
        async with client.http.post("/v1/completions", data=body, headers=headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (413, 413)
    except aiohttp.ClientConnectionError:  # the server closes before it has read everything
        pass
    await client.complete(prompt="ab")


async def test_a_body_that_is_too_deep_is_refused_wherever_the_depth_is(client: Client) -> None:
    schema: dict[str, object] = {}
    for _ in range(bodies.MAX_DEPTH):
        schema = {"properties": {"a": schema}}
    error = (await client.chat(400, structured_outputs={"json": schema}))["error"]
    assert "deep" in error["message"]

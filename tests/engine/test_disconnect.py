"""Clients that vanish: a real server, in a process of its own, goes on as if they had never been there."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio

from kubeformer.contract.base import Location
from kubeformer.contract.names import ENV_SETTINGS
from kubeformer_runtime.model.weights import save
from tests.unit.engine.builders import CHAT_TEMPLATE, byte_tokenizer, tiny_config
from tests.unit.model.builders import random_llama
from tests.unit.server.builders import NAME, server_settings

CLIENTS = 200
TOKENS = 10_000
DEADLINE = 60.0  # far more than the second that it takes on idle cores


@dataclass(frozen=True)
class Server:
    """A server and a session with it."""

    http: aiohttp.ClientSession
    port: int

    async def answers(self) -> None:
        """One short request; it has to succeed."""
        async with self.http.post("/v1/completions", json={"prompt": "ab", "max_tokens": 4}) as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["usage"]["completion_tokens"] >= 1

    async def gauge(self, name: str) -> float:
        """A sample of /metrics."""
        async with self.http.get("/metrics") as response:
            found = re.search(rf"^vllm:{name}\{{.*\}} (.+)$", await response.text(), re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    async def empty(self) -> bool:
        """Whether nothing runs, waits or holds a block."""
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return not any([await self.gauge(name) for name in names])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """The tiny Llama with room for long answers, as the image starts it."""
    directory = tmp_path_factory.mktemp("disconnect")
    save(directory, random_llama(tiny_config(max_length=TOKENS + 100)))
    byte_tokenizer().tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    location = Location(uri="pvc://models/tiny", path=str(directory))
    settings = server_settings(model=location, kv_cache_megabytes=64, max_num_seqs=16)
    (directory / "settings.json").write_text(settings.model_dump_json())
    environ = {**os.environ, ENV_SETTINGS: str(directory / "settings.json"), "OMP_NUM_THREADS": "1"}
    command = ("-m", "kubeformer_runtime.server", "--host", "127.0.0.1", "--port", "0", "--late-seconds", "0")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=environ, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        shown = ""
        async with asyncio.timeout(DEADLINE):
            while "is ready on" not in shown:
                line = await process.stderr.readline()
                assert line, shown
                shown += line.decode()
        port = int(shown.strip().rpartition(":")[2])
        connections = aiohttp.TCPConnector(limit=0)  # else the clients would wait for each other
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connections) as http:
            yield Server(http, port)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
            await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(condition: Callable[[], Awaitable[bool]]) -> float:
    """Wait for a condition; how many seconds it took."""
    began = time.monotonic()
    async with asyncio.timeout(DEADLINE):
        while not await condition():  # noqa: ASYNC110 - what changes is another process
            await asyncio.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("stream", [False, True])
async def test_two_hundred_clients_hang_up_and_the_next_one_is_answered(
    server: Server, stream: bool, record_property: Callable[[str, object], None]
) -> None:
    async def impatient() -> None:
        body = {"model": NAME, "prompt": "ab", "max_tokens": TOKENS, "ignore_eos": True, "stream": stream}
        async with asyncio.timeout(0.5), server.http.post("/v1/completions", json=body) as response:
            await response.read()

    ended = await asyncio.gather(*(impatient() for _ in range(CLIENTS)), return_exceptions=True)
    assert {type(error) for error in ended} == {TimeoutError}
    began = time.monotonic()
    await server.answers()
    record_property("seconds to an answer", time.monotonic() - began)
    record_property("seconds to no block held", await until(server.empty))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_client_that_vanishes_in_the_middle_of_its_body_costs_nothing(server: Server) -> None:
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        writer.write(b'Content-Length: 1000\r\n\r\n{"prompt": "')
        await writer.drain()
        writer.transport.abort()
    await server.answers()

    async def idle() -> bool:
        async with server.http.get("/load") as response:
            return bool((await response.json())["server_load"] == 0)

    await until(idle)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_client_that_reads_slowly_gets_its_whole_answer_while_others_get_theirs(server: Server) -> None:
    body = {"prompt": "ab", "max_tokens": 400, "ignore_eos": True, "stream": True}
    text = b""
    async with server.http.post("/v1/completions", json=body) as response:
        for number in range(40):
            text += await response.content.read(100)
            if number % 10 == 0:
                await server.answers()
            await asyncio.sleep(0.01)
        text += await response.read()
    assert text.endswith(b"data: [DONE]\n\n")
    assert text.count(b'"finish_reason":"length"') == 1


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "text/plain"}, b'{"prompt": "ab"}', 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"prompt=ab", 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x--", 415),
        ({}, b'{"prompt": "ab"}', 415),
        ({"Content-Type": "application/json"}, b"\xff\xfe", 400),
        ({"Content-Type": "application/json"}, b'{"prompt": "\xff"}', 400),
        ({"Content-Type": "application/json"}, b"[" * 100_000, 400),
        ({"Content-Type": "application/json"}, b'{"prompt": "ab"', 400),
        ({"Content-Type": "application/json"}, b"", 400),
        ({"Content-Type": "application/json"}, b'{"prompt": "ab", "max_tokens": 1e400}', 400),
        ({"Content-Type": "application/json; charset=nonsense"}, b'{"prompt": "ab", "max_tokens": 1}', 200),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"no gzip", 400),
    ],
    ids=str,
)
async def test_a_body_of_another_kind_is_refused_in_openais_shape(
    server: Server, headers: dict[str, str], body: bytes, status: int
) -> None:
    skip = [] if headers else ["Content-Type"]
    async with server.http.post("/v1/completions", data=body, headers=headers, skip_auto_headers=skip) as response:
        document = await response.json()
        assert response.status == status, document
        if status != 200:
            assert set(document["error"]) == {"message", "type", "param", "code"}
            assert document["error"]["code"] == status
    await server.answers()

"""The life of a server: 503 while loading, ready, draining without losing a request, and how it fails."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from kubeformer.contract.base import Location
from kubeformer.contract.names import ENV_SETTINGS, ExitCode, Reason
from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.server.main import Address, drain, read_settings, run, serve
from kubeformer_runtime.server.serving import Phase
from tests.unit.engine.builders import script_core, until, write_model
from tests.unit.server.builders import client_of, language_model, server_settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until_health(port: int, status: int) -> None:
    """Wait until /health answers with `status`."""
    async with aiohttp.ClientSession() as http, asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"http://127.0.0.1:{port}/health") as response:
                    if response.status == status:
                        return
            await asyncio.sleep(0.02)


def settings_of(directory: Path, **changes: object) -> ServerSettings:
    location = Location(uri="pvc://models/tiny", path=str(directory))
    return server_settings(model=location, kv_cache_megabytes=1, max_num_seqs=4, drain_seconds=20, **changes)


async def test_while_loading_the_server_is_up_but_not_ready() -> None:
    async with client_of() as client:
        assert (await client.get("/health"))[0] == 503
        assert (await client.get("/v1/models"))[0] == 200
        assert (await client.get("/metrics"))[0] == 200
        answer = await client.complete(503, prompt="a")
        assert "loading" in answer["error"]["message"]
        client.serving.install(language_model())
        assert (await client.get("/health"))[0] == 200
        await client.complete(prompt="a")


async def test_draining_finishes_what_runs_takes_late_requests_and_then_refuses() -> None:
    async with client_of(language_model(script_core(b"x", 2, end=False, max_model_len=200))) as client:
        running = asyncio.create_task(client.complete(prompt="ab", max_tokens=190))
        await until(lambda: client.serving.active > 0)
        over = asyncio.Event()  # the short while in which late requests are taken
        draining = asyncio.create_task(drain(client.serving, 60.0, sleep=lambda _: over.wait()))
        await until(lambda: client.serving.phase is Phase.DRAINING)
        assert (await client.get("/health"))[0] == 503
        assert (await client.complete(prompt="cd", max_tokens=2))["usage"]["completion_tokens"] == 2
        over.set()
        assert (await running)["usage"]["completion_tokens"] == 190
        await draining
        async with client.http.post("/v1/completions", json={"prompt": "ab"}) as response:
            assert response.status == 503
            assert response.headers["Retry-After"]


async def test_draining_does_not_wait_for_ever() -> None:
    async with client_of(language_model(script_core(b"x", 2))) as client:
        client.serving.idle.clear()  # a request that never ends
        client.serving.active = 1
        async with asyncio.timeout(30):
            await drain(client.serving, 0.2)
        client.serving.active = 0


async def test_a_process_serves_a_directory_until_it_is_told_to_stop(tmp_path: Path) -> None:
    settings = settings_of(write_model(tmp_path / "m"))
    port, stop = free_port(), asyncio.Event()
    server = asyncio.create_task(serve(settings, Address("127.0.0.1", port), stop, threads=1, late=0.0))
    await until_health(port, 200)
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "ab", "max_tokens": 3}) as response,
    ):
        assert response.status == 200
    stop.set()
    await server


async def test_a_stop_while_loading_does_not_wait_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    release = threading.Event()
    monkeypatch.setattr("kubeformer_runtime.server.main.load_engine", lambda *_, **__: release.wait(60))
    stop = asyncio.Event()
    server = asyncio.create_task(serve(settings_of(tmp_path), Address("127.0.0.1", free_port()), stop))
    await asyncio.sleep(0)
    stop.set()
    async with asyncio.timeout(30):
        await server
    release.set()


async def test_a_missing_model_ends_with_78_and_a_message_for_kubernetes(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(settings_of(tmp_path / "nothing").model_dump_json())
    environ = {ENV_SETTINGS: str(path), "KUBEFORMER_TERMINATION_MESSAGE_PATH": str(tmp_path / "termination")}
    assert await run(Address("127.0.0.1", free_port()), environ) == ExitCode.INVALID
    message = json.loads((tmp_path / "termination").read_text())
    assert message["reason"] == Reason.MODEL_NOT_FOUND
    assert "pvc://models/tiny" in message["message"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "JSON"),
        ('{"name": "a"}', "namespace"),
        ('{"name": "a", "namespace": "b", "model": {"uri": "c", "path": "d"}, "servedNames": []}', "servedNames"),
    ],
)
def test_settings_that_cannot_be_used_are_a_sentence(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelError, match=words) as caught:
        read_settings({ENV_SETTINGS: str(path)})
    assert caught.value.reason == Reason.SETTINGS_INVALID


async def test_the_command_answers_a_stream_to_its_end_after_sigterm(tmp_path: Path) -> None:
    """The real process: its environment, its signals, its exit code."""
    path, port = tmp_path / "settings.json", free_port()
    settings = settings_of(write_model(tmp_path / "m")).model_copy(update={"drain_seconds": 60})
    path.write_text(settings.model_dump_json())
    environ = {**os.environ, ENV_SETTINGS: str(path), "OMP_NUM_THREADS": "1"}
    command = ["-m", "kubeformer_runtime.server", "--host", "127.0.0.1", "--port", str(port), "--late-seconds", "0"]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, env=environ)
    try:
        await until_health(port, 200)
        body = {"prompt": "ab", "max_tokens": 120, "ignore_eos": True, "stream": True}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as response,
        ):
            await response.content.readuntil(b"\n\n")
            process.send_signal(signal.SIGTERM)
            rest = await response.text()
        assert rest.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in rest
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

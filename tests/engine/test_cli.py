"""kubeformer-serve: a model directory becomes a server, with a bar while it loads and a line to try it with."""

import asyncio
import io
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from kubeformer_runtime.server.cli import ProgressBar, main, parser, run, settings_of
from tests.unit.engine.builders import write_model


async def test_the_command_serves_a_directory_and_shows_how_to_use_it(tmp_path: Path) -> None:
    """A real process: it answers at the address that it prints, to the body that it prints, and ends on SIGINT."""
    command = [str(write_model(tmp_path / "tiny")), "--port", "0", "--served-model-name", "small", "other"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kubeformer_runtime.server.cli", *command, "--max-num-seqs", "4"),
        *("--kv-cache-megabytes", "1"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        shown = ""
        async with asyncio.timeout(120):
            while "curl" not in shown:
                line = await process.stderr.readline()
                assert line, shown
                shown += line.decode()
        for stage in ("loading PyTorch", "reading weights", "warming up"):
            assert stage in shown
        found = re.search(r"curl (\S+) -H '(.+): (.+)' -d '(.+)'", shown)
        assert found is not None, shown
        url, header, value, body = found.groups()
        assert json.loads(body)["model"] == "small"
        async with (
            aiohttp.ClientSession() as http,
            http.post(url, data=body, headers={header: value}) as response,
        ):
            assert response.status == 200, await response.text()
            assert (await response.json())["choices"][0]["message"]["role"] == "assistant"
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_directory_that_is_not_there_is_a_sentence_before_anything_heavy_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "nothing")])
    assert ended.value.code == 78
    assert "there is no directory" in capsys.readouterr().err


async def test_a_directory_that_holds_no_model_is_a_sentence_too(tmp_path: Path) -> None:
    out = io.StringIO()
    settings = settings_of(parser().parse_args([str(tmp_path)]))
    assert await run(settings, "127.0.0.1", 0, 1, ProgressBar(out, tty=False)) == 78
    assert "cannot be served (ModelNotFound)" in out.getvalue()


async def test_a_port_that_is_taken_is_a_sentence_too(tmp_path: Path) -> None:
    out = io.StringIO()
    settings = settings_of(parser().parse_args([str(tmp_path)]))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert await run(settings, "127.0.0.1", port, 1, ProgressBar(out, tty=False)) == 1
    assert f"127.0.0.1:{port} cannot be listened on" in out.getvalue()


def test_options_become_the_settings_that_an_operator_would_write(tmp_path: Path) -> None:
    options = "--dtype bfloat16 --quantization int8 --numerics reproducible --speculative-tokens 4 --max-model-len 512"
    found = settings_of(parser().parse_args([str(tmp_path), *options.split(), "--lora-modules", "legal=/adapters/l"]))
    assert (found.dtype, found.quantization, found.numerics) == ("BFloat16", "Int8", "Reproducible")
    assert (found.speculative_tokens, found.max_model_length) == (4, 512)
    assert found.served_names == [tmp_path.name]
    assert [(adapter.name, adapter.location.path) for adapter in found.adapters] == [("legal", "/adapters/l")]
    with pytest.raises(SystemExit):
        parser().parse_args([str(tmp_path), "--lora-modules", "legal"])


def test_the_bar_fills_with_the_bytes_that_were_read() -> None:
    now = iter(range(100))
    out = io.StringIO()
    bar = ProgressBar(out, tty=True, clock=lambda: next(now))
    bar.stage("reading weights", 200_000_000)
    bar.advance(100_000_000)
    bar.close("done")
    drawn = out.getvalue().split("\r\033[K")
    assert "[" + "." * 30 + "]" in drawn[1]
    assert "[" + "#" * 15 + "." * 15 + "]  50% of 200 MB" in drawn[2]
    assert drawn[3] == "done\n"


def test_without_a_terminal_each_stage_is_one_line() -> None:
    out = io.StringIO()
    bar = ProgressBar(out, tty=False)
    bar.stage("reading weights", 10)
    for _ in range(10):
        bar.advance(1)
    bar.stage("warming up")
    bar.close("done")
    assert out.getvalue() == "reading weights ...\nwarming up ...\ndone\n"

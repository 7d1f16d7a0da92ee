"""From process start to the first token, with caches warm and cold.

Cold means what a new pod on a new node finds: no compiled step or library in our cache, and neither PyTorch's libraries
nor the weights in the page cache (as far as nobody else has them open).
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import aiohttp
import torch

import kubeformer_runtime
from bench.engine.bars import Bar
from bench.engine.fleet import table
from bench.peers import kubeformer
from bench.peers.server import Launch, Server, start
from examples import smollm2

REPEATS = 3
LIMIT_SECONDS = 120.0
CACHE_VARIABLES = ("KUBEFORMER_CACHE", "XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR")


def run(work: Path, long: bool) -> dict[str, object]:
    """Our engine in bf16 and int8."""
    model = smollm2.ensure()
    rows: dict[str, dict[str, object]] = {}
    slowest: dict[str, float] = {}
    repeats = 7 if long else REPEATS
    for launch in (kubeformer.launch(model, work), kubeformer.launch(model, work, quantization="Int8")):
        row: dict[str, object] = {}
        for kind in ("cold", "warm"):
            values = []
            for _ in range(repeats):
                if kind == "cold":
                    with tempfile.TemporaryDirectory(prefix="cold-") as empty:
                        forget([Path(torch.__file__).parent / "lib", Path(kubeformer_runtime.__file__).parent, model])
                        values.append(first_token(_with_cache(launch, empty), work))
                else:
                    values.append(first_token(launch, work))
            if kind == "warm":
                values = values[1:]  # the first warms whatever there is to warm
            row[kind] = round(statistics.median(values), 2)
            row[f"{kind}Most"] = round(max(values), 2)
            slowest[kind] = max(slowest.get(kind, 0.0), statistics.median(values))
        rows[launch.name] = row
    columns = {"warm": "warm, s", "warmMost": "most", "cold": "cold, s", "coldMost": "most"}
    print(table("process start to first token, SmolLM2-135M", rows, columns), flush=True)
    bars = [
        Bar("process start to first token, warm, s", 8.0, 3.0, round(slowest["warm"], 2), higher=False),
        Bar("process start to first token, cold, s", 30.0, 10.0, round(slowest["cold"], 2), higher=False),
    ]
    return {"rows": rows, "bars": bars}


def _with_cache(launch: Launch, folder: str) -> Launch:
    return replace(launch, environment={**launch.environment, **dict.fromkeys(CACHE_VARIABLES, folder)})


def first_token(launch: Launch, work: Path) -> float:
    """Seconds from starting the process to the first token at a client that asks as soon as the port answers."""
    server = start(launch, work)
    try:
        asyncio.run(_ask(server))
        return time.monotonic() - server.began
    finally:
        server.end()


async def _ask(server: Server) -> None:
    body = {"model": server.launch.model, "prompt": "Once upon a time", "max_tokens": 1, "temperature": 0.0}
    deadline = time.monotonic() + LIMIT_SECONDS
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline and server.process.poll() is None:
            try:
                async with session.post(server.url + "/v1/completions", json=body) as answer:
                    if answer.status == 200:
                        await answer.read()
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.02)
    raise RuntimeError(f"no token within {LIMIT_SECONDS:.0f} s\n{server.tail()}")


def forget(folders: Iterable[Path]) -> None:
    """Ask the kernel to drop files from the page cache; what others have mapped stays."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)

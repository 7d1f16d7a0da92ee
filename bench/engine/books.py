"""Nothing leaks: 10,000 random operations with the books checked after each, and 200 clients that hang up.

The operations run on a tiny random model, so that there are many steps; the clients hang up on SmolLM2 over HTTP.
"""

import asyncio
import random
import time
from pathlib import Path

import aiohttp
import torch

from bench.engine import models
from bench.engine.bars import Bar
from bench.peers import kubeformer
from bench.peers.server import Server, running
from examples import smollm2
from kubeformer_runtime.engine.core import EngineCore, Request
from kubeformer_runtime.engine.llama_runner import LlamaRunner
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.scheduler import SchedulerConfig
from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.weights import load

OPERATIONS = 10_000
CLIENTS, HANG_UP_SECONDS = 200, 0.5
ANSWER_SECONDS, EMPTY_SECONDS = 1.0, 1.0


def run(work: Path, long: bool) -> dict[str, object]:
    """Both."""
    begin = time.monotonic()
    books = operations(OPERATIONS * (10 if long else 1), seed=4)
    print(f"{books} in {time.monotonic() - begin:.0f} s", flush=True)
    with running(kubeformer.launch(smollm2.ensure(), work), work) as server:
        hangups = asyncio.run(_hang_up(server))
    print(hangups, flush=True)
    bars = [
        Bar("random operations without a block leaked", OPERATIONS, 10 * OPERATIONS, books["operations"]),
        Bar("preemptions among them", 1, 1, books["preemptions"]),
        Bar("KV usage back to 0 after the last abort, s", EMPTY_SECONDS, 0.2, hangups["emptySeconds"], higher=False),
        Bar("answer after 200 hang-ups, s", ANSWER_SECONDS, 0.3, hangups["answerSeconds"], higher=False),
    ]
    return {"rows": {"operations": books, "hangUps": hangups}, "bars": bars}


def operations(count: int, seed: int) -> dict[str, float]:
    """Submit, abort, preempt (by a cache that is too small), finish; the books are checked after every operation."""
    model = load(models.tiny(models.TINY[0]), torch.float32)
    if not isinstance(model.config, LlamaConfig):
        raise TypeError("the tiny model is a Llama")
    torch.set_num_threads(1)
    runner = LlamaRunner(model.config, model.weights, num_blocks=12, max_length=128)
    tokenizer = EngineTokenizer.load(models.tiny(models.TINY[0]))
    core = EngineCore(runner, SchedulerConfig(8, 64, 128), tokenizer, frozenset({2}))
    dice = random.Random(seed)
    alive: dict[str, int] = {}  # choices that run, by request
    made = dict.fromkeys(("submitted", "aborted", "finished", "preemptions", "steps"), 0.0)
    shared = [dice.randrange(3, 4096) for _ in range(48)]
    for number in range(count):
        kind = dice.random()
        if kind < 0.3 and len(alive) < 24:
            begin = shared[: dice.choice((0, 16, 33, 48))]
            prompt = begin + [dice.randrange(3, 4096) for _ in range(dice.randrange(1, 40))]
            temperature, n = dice.choice((0.0, 1.0)), dice.choice((1, 1, 1, 3))
            params = SamplingParams(max_tokens=dice.randrange(1, 36), temperature=temperature, n=n)
            core.add(Request(str(number), prompt, params, number))
            alive[str(number)] = n
            made["submitted"] += 1
        elif kind < 0.4 and alive:
            request_id = dice.choice(list(alive))
            core.abort(request_id)
            del alive[request_id]
            made["aborted"] += 1
        else:
            _step(core, alive, made)
        core.check_books()
    core.abort_all()
    core.check_books()
    if core.stats().kv_cache_usage != 0.0 or core.has_work:
        raise AssertionError(f"blocks are in use after everything was aborted: {core.stats()}")
    return {"operations": float(count), **made}


def _step(core: EngineCore, alive: dict[str, int], made: dict[str, float]) -> None:
    output = core.step()
    made["steps"] += 1
    made["preemptions"] += output.stats.preemptions
    for delta in output.deltas:
        if delta.finish_reason is not None:
            alive[delta.request_id] -= 1
            if not alive[delta.request_id]:
                del alive[delta.request_id]
                made["finished"] += 1


async def _hang_up(server: Server) -> dict[str, float]:
    """200 clients leave at once; then one asks."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client(number: int) -> None:
            body = {
                "model": "m",
                "prompt": f"Tell me story number {number}, and make it long.",
                "max_tokens": 1000,
                "ignore_eos": True,
                "stream": True,
            }
            timeout = aiohttp.ClientTimeout(total=HANG_UP_SECONDS)
            try:
                async with session.post(server.url + "/v1/completions", json=body, timeout=timeout) as answer:
                    async for _ in answer.content:
                        pass
            except (TimeoutError, aiohttp.ClientError):
                pass

        await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        left = time.monotonic()
        body = {"model": "m", "prompt": "Hello", "max_tokens": 1, "temperature": 0.0}
        async with session.post(server.url + "/v1/completions", json=body) as answer:
            await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"after the hang-ups: {answer.status}")
        answered = time.monotonic() - left
        usage = 1.0
        while usage > 0 and time.monotonic() - left < 30:
            async with session.get(server.url + "/metrics") as answer:
                lines = (await answer.text()).splitlines()
            usage = max(float(line.split()[-1]) for line in lines if line.startswith("vllm:kv_cache_usage_perc"))
            if usage > 0:
                await asyncio.sleep(0.01)
        return {"answerSeconds": round(answered, 3), "emptySeconds": round(time.monotonic() - left, 3)}

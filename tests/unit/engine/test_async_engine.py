"""The engine behind an event loop: streams end, aborts take effect, and a broken engine says so."""

import asyncio
from contextlib import aclosing

import pytest
import torch
from torch import Tensor

from kubeformer_runtime.engine.async_engine import AsyncEngine, EngineDeadError
from kubeformer_runtime.engine.batch import Batch
from kubeformer_runtime.engine.core import EngineCore, StepStats
from kubeformer_runtime.engine.sampling_params import ParameterError
from kubeformer_runtime.engine.scheduler import SchedulerConfig
from tests.unit.engine.builders import EOS, ScriptRunner, byte_tokenizer, outputs, request, tiny_core, until


async def collect(engine: AsyncEngine, *requests: object) -> dict[tuple[str, int], list[int]]:
    tokens: dict[tuple[str, int], list[int]] = {}
    async with aclosing(engine.generate(list(requests))) as deltas:  # type: ignore[arg-type]
        async for delta in deltas:
            tokens.setdefault((delta.request_id, delta.index), []).extend(item.token for item in delta.tokens)
    return tokens


async def test_concurrent_requests_get_the_tokens_they_would_get_alone() -> None:
    items = [request(f"r{number}", [number, 7, 9], n=2, temperature=1.0, max_tokens=6) for number in range(5)]
    engine = AsyncEngine(tiny_core())
    engine.start()
    found = await asyncio.gather(*(collect(engine, item) for item in items))
    await engine.close()
    for item, tokens in zip(items, found, strict=True):
        assert tokens == outputs(tiny_core(), item)


async def test_several_requests_share_one_stream() -> None:
    engine = AsyncEngine(tiny_core())
    engine.start()
    tokens = await collect(engine, request("a", b"ab"), request("b", b"cd", n=2))
    await engine.close()
    assert set(tokens) == {("a", 0), ("b", 0), ("b", 1)}


async def test_leaving_the_stream_frees_every_block() -> None:
    stats: list[StepStats] = []
    engine = AsyncEngine(tiny_core(), stats.append)
    engine.start()
    async with aclosing(engine.generate([request("r", b"abc", max_tokens=90, ignore_eos=True)])) as deltas:
        await anext(deltas)
    await until(lambda: not engine.core.has_work and stats[-1].kv_cache_usage == 0.0)
    assert engine.num_requests == 0
    await engine.close()


async def test_a_cancelled_client_is_an_abort() -> None:
    engine = AsyncEngine(tiny_core())
    engine.start()
    client = asyncio.create_task(collect(engine, request("r", b"abc", max_tokens=90, ignore_eos=True)))
    await until(lambda: engine.core.has_work)
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client
    await until(lambda: not engine.core.has_work)
    assert await collect(engine, request("next", b"abc", max_tokens=3, ignore_eos=True))
    await engine.close()


async def test_a_request_that_cannot_run_is_refused_before_it_reaches_the_engine() -> None:
    engine = AsyncEngine(tiny_core(max_model_len=10))
    engine.start()
    with pytest.raises(ParameterError):
        await collect(engine, request("short", b"ab"), request("long", b"x" * 50))
    assert engine.num_requests == 0
    await engine.close()


class BrokenRunner(ScriptRunner):
    """Fails in its third step."""

    steps = 0

    def execute(self, batch: Batch) -> Tensor:
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("out of memory")
        return super().execute(batch)


async def test_when_a_step_fails_every_request_ends_and_later_ones_are_refused() -> None:
    core = EngineCore(
        BrokenRunner(lambda _: 65), SchedulerConfig(max_model_len=200), byte_tokenizer(), frozenset({EOS})
    )
    engine = AsyncEngine(core)
    engine.start()
    found = await asyncio.gather(
        *(collect(engine, request(name, b"ab", max_tokens=50)) for name in "ab"), return_exceptions=True
    )
    assert all(isinstance(result, EngineDeadError) for result in found)
    assert not engine.alive
    with pytest.raises(EngineDeadError):
        await collect(engine, request("c", b"ab"))
    await engine.close()


async def test_closing_ends_what_runs() -> None:
    engine = AsyncEngine(tiny_core())
    engine.start()
    client = asyncio.create_task(collect(engine, request("r", b"abc", max_tokens=90, ignore_eos=True)))
    await until(lambda: engine.core.has_work)
    await engine.close()
    with pytest.raises(EngineDeadError):
        await client
    assert torch.is_inference_mode_enabled() is False

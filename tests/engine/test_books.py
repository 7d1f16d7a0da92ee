"""Ten thousand requests, aborts, preemptions and ends later every block is accounted for, and every answer is right."""

import asyncio
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from random import Random

import torch

from kubeformer_runtime.engine.async_engine import AsyncEngine
from kubeformer_runtime.engine.core import EngineCore, Request, StepStats
from kubeformer_runtime.engine.sequence import FinishReason
from tests.unit.engine.builders import outputs, request, tiny_core, until

OPERATIONS = 10_000
PROMPTS = [[*range(60, 60 + shared), *range(number, number + own)] for number, (shared, own) in enumerate(
    [(0, 3), (8, 2), (8, 5), (16, 1), (16, 9), (24, 4), (24, 20), (0, 40)]
)]  # fmt: skip


def asked(number: int, prompt: int) -> Request:
    """A greedy request for one of the prompts; half of them may use drafts well, because they repeat themselves."""
    item = request(f"r{number}", PROMPTS[prompt], max_tokens=4 + prompt, ignore_eos=True)
    return replace(item, priority=number % 3 - 1, cache_salt="salt" if number % 5 == 0 else None)


def crowded_core() -> EngineCore:
    """So few blocks that somebody is preempted all the time."""
    return tiny_core(num_blocks=30, max_num_seqs=6, max_num_batched_tokens=40, speculative_tokens=2)


def test_no_block_is_lost_and_no_answer_changed_by_ten_thousand_operations() -> None:
    torch.set_num_threads(1)
    random, core = Random(4), crowded_core()
    expected = [outputs(tiny_core(), asked(0, prompt))["r0", 0] for prompt in range(len(PROMPTS))]
    live: dict[str, int] = {}  # which prompt each unfinished request has
    tokens: dict[str, list[int]] = {}
    done: Counter[str] = Counter()
    number = 0
    while done.total() < OPERATIONS:
        while len(live) < random.randint(1, 14):
            prompt = random.randrange(len(PROMPTS))
            item = asked(number, prompt)
            core.add(item)
            live[item.request_id], tokens[item.request_id] = prompt, []
            number += 1
            done["submit"] += 1
        for request_id in random.sample(sorted(live), min(len(live), random.choice((0, 0, 1, 2)))):
            (delta,) = core.abort(request_id)
            assert delta.finish_reason is FinishReason.ABORT
            del live[request_id], tokens[request_id]
            done["abort"] += 1
        output = core.step()
        done["preempt"] += output.stats.preemptions
        for delta in output.deltas:
            tokens[delta.request_id] += [item.token for item in delta.tokens]
            if delta.finish_reason is not None:
                assert tokens.pop(delta.request_id) == expected[live.pop(delta.request_id)]
                done["finish"] += 1
        core.check_books()
    core.abort_all()
    core.check_books()
    assert core.stats() == StepStats(), "nothing runs, nothing waits, no block is held"
    assert min(done.values()) > OPERATIONS / 20, f"every kind of operation took part: {done}"
    assert outputs(core, asked(0, 3)) == {("r0", 0): expected[3]}, "and it still works"


async def test_clients_that_vanish_leave_an_empty_cache_and_an_engine_that_answers() -> None:
    stats: list[StepStats] = []
    engine = AsyncEngine(crowded_core(), stats.append)
    engine.start()

    async def vanish(number: int) -> None:
        async with aclosing(engine.generate([asked(number, number % len(PROMPTS))])) as deltas:
            await anext(deltas)

    clients = [asyncio.create_task(vanish(number)) for number in range(200)]
    await until(lambda: any(client.done() for client in clients))
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    count = len(stats)
    await until(lambda: bool(stats) and stats[-1] == StepStats())
    steps = sum(item.step_tokens > 0 for item in stats[count:])
    assert steps < 20, "aborts do not wait for what was asked before them"
    async with aclosing(engine.generate([asked(0, 0)])) as deltas:
        assert [delta async for delta in deltas][-1].finish_reason is FinishReason.LENGTH
    await engine.close()

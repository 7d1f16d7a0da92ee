"""Load on one server, and what a client sees of it: streams of /v1/completions, closed loop or open loop.

Greedy, with the end token ignored, so that every request gives exactly the tokens it asks for and all engines do the
same work. While requests run only the time of each chunk is noted; texts are parsed afterwards.
"""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from bench.peers.server import PeerError, Server

LIMIT_SECONDS = 300.0  # of one request


@dataclass(frozen=True, slots=True)
class Reply:
    """One request. Times are seconds of one clock."""

    began: float
    chunks: tuple[float, ...]  # when each chunk with text came
    tokens: int  # of the answer
    prompt_tokens: int | None  # as the server counted them, where it says so

    @property
    def first(self) -> float:
        """Seconds to the first chunk."""
        return self.chunks[0] - self.began


@dataclass(frozen=True, slots=True)
class Measured:
    """A run over several requests. Seconds throughout."""

    tokens_per_second: float  # of all answers, from the first request to the last chunk
    decode_per_second: float  # of one stream after its first chunk, median over streams
    first_p50: float
    first_p99: float
    gap_p50: float  # between chunks, over all streams; an engine that sends several tokens at once has fewer
    gap_p99: float
    seconds: float


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def summarise(replies: Sequence[Reply]) -> Measured:
    """Of at least one reply."""
    begin, end = min(reply.began for reply in replies), max(reply.chunks[-1] for reply in replies)
    gaps = [b - a for reply in replies for a, b in zip(reply.chunks, reply.chunks[1:], strict=False)] or [0.0]
    rates = [
        (reply.tokens - 1) / max(1e-9, reply.chunks[-1] - reply.chunks[0]) for reply in replies if reply.tokens > 1
    ]
    firsts = [reply.first for reply in replies]
    return Measured(
        tokens_per_second=sum(reply.tokens for reply in replies) / (end - begin),
        decode_per_second=statistics.median(rates),
        first_p50=percentile(firsts, 0.5),
        first_p99=percentile(firsts, 0.99),
        gap_p50=percentile(gaps, 0.5),
        gap_p99=percentile(gaps, 0.99),
        seconds=end - begin,
    )


async def stream(session: aiohttp.ClientSession, server: Server, prompt: str, tokens: int) -> Reply:
    """One request. Raises PeerError where the answer is not what was asked for."""
    body = {
        "model": server.launch.model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": True,
        **server.launch.extra,
    }
    if server.launch.text_per_token:
        body["stream_options"] = {"include_usage": True}
    stamps: list[tuple[float, bytes]] = []
    began = time.perf_counter()
    async with session.post(server.url + "/v1/completions", json=body) as answer:
        if answer.status != 200:
            raise PeerError(f"{server.launch.name}: {answer.status} {(await answer.text())[:500]}")
        async for line in answer.content:
            if line.startswith(b"data:"):
                stamps.append((time.perf_counter(), line))
    times, usage = list[float](), None
    for when, line in stamps:
        data = line[5:].strip()
        if data == b"[DONE]":
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise PeerError(f"{server.launch.name}: {data[:500].decode()}")
        usage = chunk.get("usage") or usage
        if chunk.get("choices"):
            times.append(when)
    if not times:
        raise PeerError(f"{server.launch.name}: a stream without a chunk\n{server.tail()}")
    counted = usage["completion_tokens"] if usage else tokens
    if counted != tokens:
        raise PeerError(f"{server.launch.name}: asked for {tokens} tokens, got {counted}")
    return Reply(began, tuple(times), tokens, usage["prompt_tokens"] if usage else None)


def open_session() -> aiohttp.ClientSession:
    """A client for one run; a connection for each request, because some servers close those that were used."""
    timeout = aiohttp.ClientTimeout(total=LIMIT_SECONDS)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=2**20)


async def closed_loop(server: Server, prompts: Sequence[str], tokens: int, streams: int) -> list[Reply]:
    """`streams` clients that each send the next prompt when their last answer is complete."""
    waiting = list(reversed(prompts))
    replies: list[Reply] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while waiting:
            replies.append(await stream(session, server, waiting.pop(), tokens))

    async with open_session() as session:
        await asyncio.gather(*(client(session) for _ in range(streams)))
    return replies


async def open_loop(server: Server, prompts: Sequence[str], tokens: int, rate: float, seed: int) -> list[Reply]:
    """Requests that arrive at random, `rate` a second on average (Poisson), however slow the answers are."""
    dice = random.Random(seed)
    async with open_session() as session:
        tasks = []
        for prompt in prompts:
            tasks.append(asyncio.create_task(stream(session, server, prompt, tokens)))
            await asyncio.sleep(dice.expovariate(rate))
        return list(await asyncio.gather(*tasks))


def run_closed(server: Server, prompts: Sequence[str], tokens: int, streams: int) -> Measured:
    """`closed_loop`, summarised."""
    return summarise(asyncio.run(closed_loop(server, prompts, tokens, streams)))


def run_open(server: Server, prompts: Sequence[str], tokens: int, rate: float, seed: int) -> Measured:
    """`open_loop`, summarised."""
    return summarise(asyncio.run(open_loop(server, prompts, tokens, rate, seed)))

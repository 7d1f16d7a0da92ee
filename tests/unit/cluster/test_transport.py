"""The transport says what was answered, and raises only when nothing was."""

import asyncio

import pytest
from aiohttp import web

from kubeformer.cluster.transport import Answer, Unreachable
from tests.unit.cluster.fakes import serving, status


async def test_a_failure_status_is_an_answer_with_reason_message_and_the_time_to_wait() -> None:
    async def busy(request: web.Request) -> web.Response:
        answer = status(429, "TooManyRequests", "slow down")
        answer.headers["Retry-After"] = "7"
        return answer

    async with serving(busy) as transport:
        answer = await transport.request("GET", "/api/v1/pods")
    assert (answer.status, answer.reason, answer.message) == (429, "TooManyRequests", "slow down")
    assert answer.retry_after_seconds == 7
    assert not answer.ok


async def test_after_a_401_the_token_is_read_again_and_the_request_repeated_once() -> None:
    seen = []

    async def guarded(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.json_response({}) if seen[-1] == "Bearer new" else status(401, "Unauthorized")

    async with serving(guarded, tokens=["old", "new"]) as transport:
        assert (await transport.request("GET", "/")).ok
    assert seen == ["Bearer old", "Bearer new"]

    async with serving(guarded, tokens=["wrong"]) as transport:
        assert (await transport.request("GET", "/")).status == 401


async def test_no_answer_is_unreachable() -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.json_response({})

    async with serving(slow) as transport:
        with pytest.raises(Unreachable, match="GET /slow"):
            await transport.request("GET", "/slow", seconds=0.1)


async def test_a_stream_gives_whole_objects_whatever_the_pieces_they_come_in() -> None:
    long = "x" * 300_000  # longer than any line buffer

    async def dribble(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in ('{"a":', '1}\n{"b":2}', "\n\n", f'{{"c":"{long}"}}\n'):
            await response.write(piece.encode())
            await asyncio.sleep(0)
        return response

    async with serving(dribble) as transport, transport.stream("/", {}, 30) as stream:
        assert not isinstance(stream, Answer)
        assert [event async for event in stream] == [{"a": 1}, {"b": 2}, {"c": long}]


async def test_a_stream_that_falls_silent_is_unreachable() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(60)
        return response

    async def listen() -> None:
        async with serving(silent) as transport, transport.stream("/", {}, 0.1) as stream:
            assert not isinstance(stream, Answer)
            async for _ in stream:
                raise AssertionError("nothing was said")

    with pytest.raises(Unreachable):
        await listen()

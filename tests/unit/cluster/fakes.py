"""An HTTP server on loopback that answers as a test says, and a transport to it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from kubeformer.cluster.credentials import Credentials
from kubeformer.cluster.transport import Transport

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, tokens: list[str] | None = None) -> AsyncIterator[Transport]:
    """A transport to a server that answers every request with `handler`.

    `tokens` are what the credentials hold, one after the other; reloading goes to the next.
    """
    app = web.Application()

    async def answer(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    left = list(tokens or [])

    async def authorization() -> str | None:
        return f"Bearer {left[0]}" if left else None

    async def reload() -> None:
        if len(left) > 1:
            left.pop(0)

    credentials = Credentials(
        server=f"http://127.0.0.1:{runner.addresses[0][1]}",
        ca_path=None,
        certificate_path=None,
        key_path=None,
        verify=True,
        server_name=None,
        proxy=None,
        authorization=authorization,
        reload=reload,
    )
    try:
        async with Transport(credentials) as transport:
            yield transport
    finally:
        await runner.cleanup()


def pod(name: str, version: int, **more: Any) -> dict[str, Any]:
    """A small pod."""
    metadata = {"namespace": "lab", "name": name, "uid": f"uid-of-{name}", "resourceVersion": str(version)}
    return {"metadata": metadata, **more}


def pods(*items: dict[str, Any], version: int, proceed: str = "") -> dict[str, Any]:
    """A list of pods at a version."""
    return {"kind": "PodList", "metadata": {"resourceVersion": str(version), "continue": proceed}, "items": list(items)}


def status(code: int, reason: str = "", message: str = "") -> web.Response:
    """A Status, as the API server fails."""
    return web.json_response({"kind": "Status", "code": code, "reason": reason, "message": message}, status=code)

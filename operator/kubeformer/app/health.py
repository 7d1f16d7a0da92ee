"""Health: GET /healthz, /readyz and /metrics of the operator, on a port of their own.

/healthz answers as long as the event loop turns: a process that cannot is to be restarted. /readyz says in
words what is not ready yet: what has not been listed, whose watch is down. A replica that does not lead is ready too.
"""

from collections.abc import Callable, Sequence

from aiohttp import web

from kubeformer.app.metrics import CONTENT_TYPE, Metrics


class HealthServer:
    """See the module's docstring. `unready` returns what is missing, nothing when ready."""

    def __init__(self, port: int, unready: Callable[[], Sequence[str]], metrics: Metrics) -> None:
        self._port = port
        self._unready = unready
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Starts to serve, on all addresses (on loopback where any port will do); returns the port."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._serve_metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, None if self._port else "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stops serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        missing = self._unready()
        return web.Response(text="\n".join(missing or ["ok"]) + "\n", status=503 if missing else 200)

    async def _serve_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

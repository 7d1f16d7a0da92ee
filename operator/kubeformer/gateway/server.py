"""The gateway's HTTP application: the OpenAI paths, /health for probes, /metrics for Prometheus."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from kubeformer.gateway.metrics import Metrics
from kubeformer.gateway.proxy import MAX_BODY_BYTES, PROXIED, Proxy


def application(proxy: Proxy, metrics: Metrics, is_ready: Callable[[], bool]) -> web.Application:
    """All routes. /health is 503 until the watches have been heard and once the gateway drains."""

    async def health(_: web.Request) -> web.Response:
        return web.Response(status=200 if is_ready() else 503)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", exposition)
    app.router.add_get("/v1/models", proxy.models)
    for path in PROXIED:
        app.router.add_post(path, proxy.forward)
    return app

"""The gateway process: `python -m kubeformer.gateway`. Any number of replicas; they share nothing.

Ends with 0 on SIGTERM or SIGINT, after the requests under way; with 2 when settings or credentials cannot be used.
"""

import asyncio
import logging
import os
import random
import signal
import sys
from collections.abc import Mapping

import aiohttp
from aiohttp import web

from kubeformer.cluster.credentials import CredentialsError
from kubeformer.cluster.reflector import Reflector
from kubeformer.cluster.resources import RESOURCES
from kubeformer.cluster.transport import Transport
from kubeformer.contract.names import LABEL_MODEL_DEPLOYMENT
from kubeformer.gateway.catalog import Catalog
from kubeformer.gateway.metrics import Metrics
from kubeformer.gateway.proxy import Proxy
from kubeformer.gateway.server import application
from kubeformer.gateway.settings import GatewaySettings, SettingsError, load

log = logging.getLogger("kubeformer.gateway")

CONNECT_SECONDS = 2.0  # a replica on the same network answers in milliseconds, or is gone
CONNECTIONS = 4096


def main() -> int:
    """Runs the gateway; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        settings = load(os.environ)
        asyncio.run(_run(settings, os.environ))
    except (SettingsError, CredentialsError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


async def _run(settings: GatewaySettings, environment: Mapping[str, str]) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    catalog, metrics = Catalog(), Metrics()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with (
        await Transport.from_environment(user_agent="kubeformer-gateway") as transport,
        # Bodies pass through as they are, so nothing is decompressed on the way.
        aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as session,
        asyncio.TaskGroup() as tasks,
    ):
        reflectors = _reflectors(transport, catalog)
        watching = [tasks.create_task(reflector.run()) for reflector in reflectors]

        def is_ready() -> bool:
            # An API server that falls silent later does not make the gateway unready: it goes on with what it knows.
            return not stopping.is_set() and all(reflector.synced.is_set() for reflector in reflectors)

        proxy = Proxy(catalog, session, metrics, loop.time)
        runner = web.AppRunner(
            application(proxy, metrics, is_ready),
            handler_cancellation=True,  # a client that hangs up cancels the replica's work
            shutdown_timeout=settings.drain_seconds,
            access_log=None,
        )
        await runner.setup()
        await web.TCPSite(runner, port=settings.listen_port).start()
        log.info("listening on port %d", settings.listen_port)
        await stopping.wait()
        log.info("draining")
        await asyncio.sleep(settings.quiet_seconds)
        await runner.cleanup()
        for task in watching:
            task.cancel()


def _reflectors(transport: Transport, catalog: Catalog) -> list[Reflector]:
    jitter = random.SystemRandom().random
    slices = {"labelSelector": LABEL_MODEL_DEPLOYMENT}
    return [
        Reflector(transport, RESOURCES["ModelDeployment"], catalog, jitter),
        Reflector(transport, RESOURCES["EndpointSlice"], catalog, jitter, selectors=slices),
    ]

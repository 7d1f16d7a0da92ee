"""The server's process: serve the model that the settings name, on :8000.

    KUBEFORMER_SETTINGS=settings.json python -m kubeformer_runtime.server [--host 0.0.0.0] [--port 8000]

The port answers at once; /health says 503 until the model is loaded and warm. SIGTERM begins to drain: /health
says 503, late requests are taken for a few more seconds (routers take time to notice), then refused; what runs
may finish within `drainSeconds`; then the exit code is 0. A model or settings that cannot work end with code 78
and say why in the termination message.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from aiohttp import web
from pydantic import ValidationError

from kubeformer.contract.names import (
    ENV_SETTINGS,
    PORT_SERVER,
    SETTINGS_PATH,
    TERMINATION_MESSAGE_PATH,
    ExitCode,
    Reason,
)
from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.engine.async_engine import settle
from kubeformer_runtime.engine.loading import Progress, load_engine
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.server.app import make_app
from kubeformer_runtime.server.serving import Phase, Serving

T = TypeVar("T")
logger = logging.getLogger("kubeformer.server")

LATE_SECONDS = 5.0  # how long after SIGTERM requests are still taken
LATE_SHARE = 0.25  # of drainSeconds, at most


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int


def read_settings(environ: Mapping[str, str]) -> ServerSettings:
    """The settings file. Raises ModelError (reason SettingsInvalid) where it cannot be used."""
    path = Path(environ.get(ENV_SETTINGS, SETTINGS_PATH))
    try:
        settings = ServerSettings.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{ENV_SETTINGS} names {path}: {error.strerror}", Reason.SETTINGS_INVALID) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ModelError(f"{path}: {place or 'the document'}: {first['msg']}", Reason.SETTINGS_INVALID) from None
    if not settings.served_names:
        raise ModelError(f"{path}: servedNames is empty; give at least one name", Reason.SETTINGS_INVALID)
    return settings


async def serve(
    settings: ServerSettings,
    address: Address,
    stop: asyncio.Event,
    *,
    threads: int | None = None,
    late: float = LATE_SECONDS,
    progress: Progress | None = None,
    on_ready: Callable[[Serving, Address], None] | None = None,
) -> None:
    """Listen, load, serve until `stop` is set, drain.

    Port 0 means any that is free. `progress` hears how loading goes, `on_ready` where the server listens.

    Raises:
        ModelError: the model cannot be served.
        OSError: the address cannot be listened on.
    """
    serving = Serving(settings)
    # handler_cancellation: a client that leaves cancels its handler, which aborts its request.
    runner = web.AppRunner(make_app(serving), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, address.host, address.port, backlog=1024).start()
        address = Address(address.host, runner.addresses[0][1])
        loading = in_thread(partial(load_engine, settings, threads=threads, progress=progress))
        stopping = asyncio.create_task(stop.wait())
        first: set[asyncio.Future[object]] = {loading, stopping}  # type: ignore[arg-type]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            return  # told to stop while loading: nobody waits for an answer
        serving.install(loading.result())
        logger.info("%s is ready on %s:%d", ", ".join(settings.served_names), address.host, address.port)
        if on_ready is not None:
            on_ready(serving, address)
        while not stop.is_set():
            if not serving.alive:
                raise RuntimeError("the engine has stopped")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(stopping), 1.0)
        await drain(serving, settings.drain_seconds, late)
    finally:
        await runner.cleanup()
        await serving.close()


def in_thread(function: Callable[[], T]) -> "asyncio.Future[T]":
    """Run a function in a thread that does not hold the process back when it ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = function(), None
        except BaseException as error:
            outcome = None, error
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(settle, future, *outcome)

    threading.Thread(target=work, name="loader", daemon=True).start()
    return future


async def drain(
    serving: Serving,
    seconds: float,
    late: float = LATE_SECONDS,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Say 503 at /health, take requests for `late` seconds more, then let what runs finish within `seconds`."""
    began = serving.clock()
    serving.phase = Phase.DRAINING
    logger.info("draining: %d requests run, at most %g s", serving.active, seconds)
    await sleep(min(late, seconds * LATE_SHARE))
    serving.refusing = True
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(serving.idle.wait(), max(0.0, began + seconds - serving.clock()))
    if serving.active:
        logger.warning("%d requests did not finish within %g s and are cut off", serving.active, seconds)


def fail(error: ModelError, environ: Mapping[str, str]) -> int:
    """Leave the reason where Kubernetes finds it. Returns the exit code."""
    logger.error("%s: %s", error.reason, error)
    message = json.dumps({"reason": error.reason, "message": str(error)[:2000]}, ensure_ascii=False)
    with contextlib.suppress(OSError):  # outside of a pod there is no such file
        Path(environ.get("KUBEFORMER_TERMINATION_MESSAGE_PATH", TERMINATION_MESSAGE_PATH)).write_text(message)
    return ExitCode.INVALID


async def run(address: Address, environ: Mapping[str, str], late: float = LATE_SECONDS) -> int:
    """The whole life of the process; returns its exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        threads = environ.get("OMP_NUM_THREADS", "")
        await serve(
            read_settings(environ), address, stop, threads=int(threads) if threads.isdigit() else None, late=late
        )
    except ModelError as error:
        return fail(error, environ)
    return 0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kubeformer_runtime.server", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=PORT_SERVER)
    parser.add_argument("--late-seconds", type=float, default=LATE_SECONDS, help="after SIGTERM, still take requests")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    code = asyncio.run(run(Address(arguments.host, arguments.port), os.environ, arguments.late_seconds))
    sys.stdout.flush()
    os._exit(code)  # a thread that still loads a model must not hold the process back

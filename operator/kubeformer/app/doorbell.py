"""Doorbell: kopf watches our own kinds and rings; it decides nothing and writes nothing.

The handlers are `on.event` alone, with group, version and plural, so kopf adds no finalizer, no annotation and no
event to anybody's object. They hand the raw object to the loop's thread and return. kopf runs in a thread of its own,
because it cancels every task of its event loop when it ends, and it does end: a watch error other than 410, or a list
that fails for a minute, finishes it. Then it is started again. What it misses meanwhile, the audit finds.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import kopf

from kubeformer.cluster.credentials import Credentials
from kubeformer.cluster.resources import Resource
from kubeformer.control.news import News
from kubeformer.control.store import primary_key

log = logging.getLogger(__name__)

SHORTEST_LIFE_SECONDS = 30.0  # an engine that lived longer starts the count of failures anew
LONGEST_PAUSE_SECONDS = 30.0


class Doorbell:
    """See the module's docstring. `after_restart` is called in the loop's thread when kopf may have missed something.

    `jitter` returns a number in [0, 1), `monotonic` seconds.
    """

    def __init__(
        self,
        credentials: Credentials,
        resources: Iterable[Resource],
        news: News,
        *,
        namespaces: tuple[str, ...],
        jitter: Callable[[], float],
        monotonic: Callable[[], float],
        after_restart: Callable[[], None],
    ) -> None:
        self.restarts = 0
        self.running = False
        self._credentials = credentials
        self._resources = tuple(resources)
        self._news = news
        self._namespaces = namespaces
        self._jitter = jitter
        self._monotonic = monotonic
        self._after_restart = after_restart
        self._authorization: str | None = None

    async def run(self) -> None:
        """Keeps a kopf engine running until cancelled."""
        failures = 0
        while True:
            started = self._monotonic()
            self._authorization = await self._credentials.authorization()
            await self._one_life()
            self.restarts += 1
            failures = 0 if self._monotonic() - started > SHORTEST_LIFE_SECONDS else failures + 1
            pause = min(LONGEST_PAUSE_SECONDS, 0.5 * 2.0 ** min(failures, 10)) * (0.5 + 0.5 * self._jitter())
            log.warning("kopf has ended; starts again in %.1f s", pause)
            await asyncio.sleep(pause)
            self._after_restart()

    async def _one_life(self) -> None:
        """Runs one engine in its own thread; returns when it has ended, ends it when cancelled."""
        loop = asyncio.get_running_loop()
        stop, ready = threading.Event(), threading.Event()
        ended = asyncio.Event()

        def live() -> None:
            try:
                asyncio.run(self._engine(loop, stop, ready))
            except Exception as error:
                log.warning("kopf: %s: %s", type(error).__name__, error)
            finally:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(ended.set)

        # A daemon, so that a watcher that will not end cannot keep the process from ending.
        thread = threading.Thread(target=live, name="kopf", daemon=True)
        thread.start()
        self.running = True
        try:
            await ended.wait()
        finally:
            self.running = False
            stop.set()

    async def _engine(self, loop: asyncio.AbstractEventLoop, stop: threading.Event, ready: threading.Event) -> None:
        where: dict[str, Any] = {"namespaces": self._namespaces} if self._namespaces else {"clusterwide": True}
        await kopf.operator(
            registry=self._registry(loop),
            settings=engine_settings(),
            standalone=True,
            stop_flag=stop,
            ready_flag=ready,
            **where,
        )

    def _registry(self, loop: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        def login(**_: Any) -> kopf.ConnectionInfo:
            asyncio.run_coroutine_threadsafe(self._refresh(), loop).result(timeout=10)
            scheme, _sep, token = (self._authorization or "").partition(" ")
            return kopf.ConnectionInfo(
                server=self._credentials.server,
                ca_path=self._credentials.ca_path,
                insecure=not self._credentials.verify,
                scheme=scheme.capitalize() or None,
                token=token or None,
                certificate_path=self._credentials.certificate_path,
                private_key_path=self._credentials.key_path,
                proxy_url=self._credentials.proxy,
            )

        for resource in self._resources:
            group, version = resource.api_version.split("/")
            ring = self._ring(resource.kind, loop)
            kopf.on.event(group, version, resource.plural, registry=registry, id=f"ring-{resource.plural}")(ring)
        return registry

    async def _refresh(self) -> None:
        self._authorization = await self._credentials.authorization()

    def _ring(self, kind: str, loop: asyncio.AbstractEventLoop) -> Callable[..., Any]:
        async def ring(event: Any, **_: Any) -> None:
            body, gone = event["object"], event["type"] == "DELETED"
            loop.call_soon_threadsafe(self._tell, kind, body, gone)

        return ring

    def _tell(self, kind: str, body: Any, gone: bool) -> None:
        try:
            if gone:
                self._news.gone(primary_key(kind, body), int(body["metadata"]["resourceVersion"]))
            else:
                self._news.primary(kind, body)
        except Exception:
            log.exception("%s: what kopf told could not be taken in; the audit will find it", kind)


def engine_settings() -> kopf.OperatorSettings:
    """kopf's settings under which it only watches."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # our kinds are there before it starts, and no namespace is looked for
    settings.process.ultimate_exiting_timeout = None  # it would kill the process
    settings.watching.chunk_size = 500
    settings.watching.connect_timeout = 5
    settings.networking.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = (0.5, 1, 2, 3, 5)
    return settings

"""Doorbell: kopf watches our own kinds and rings; it decides nothing and writes nothing.

The handlers are `on.event` alone, with group, version and plural, so kopf adds no finalizer, no annotation and no
event to anybody's object. They hand the raw object to the loop's thread and return. kopf runs in a thread of its own,
because it cancels every task of its event loop when it ends, and it does end: a watch error other than 410, or a list
that keeps failing, finishes it. Then it is started again, but not before the API server's discovery names our kinds:
kopf looks there once, and stays deaf to what it does not find. What it misses meanwhile, the audit finds; and an audit
that had to mend something has kopf started anew.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
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

    `discovered` says whether the API server names our kinds; `jitter` returns a number in [0, 1), `monotonic` seconds.
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
        discovered: Callable[[Iterable[str]], Awaitable[bool]],
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
        self._discovered = discovered
        self._after_restart = after_restart
        self._again = asyncio.Event()
        self._authorization: str | None = None

    async def run(self) -> None:
        """Keeps a kopf engine running until cancelled."""
        failures = 0
        while True:
            started = self._monotonic()
            await self._until_discovered()
            self._authorization = await self._credentials.authorization()
            await self._one_life()
            self.restarts += 1
            failures = 0 if self._monotonic() - started > SHORTEST_LIFE_SECONDS else failures + 1
            pause = min(LONGEST_PAUSE_SECONDS, 0.5 * 2.0 ** min(failures, 10)) * (0.5 + 0.5 * self._jitter())
            log.warning("kopf has ended; starts again in %.1f s", pause)
            await asyncio.sleep(pause)
            self._after_restart()

    def start_again(self) -> None:
        """Ends the engine that runs, so that another takes its place."""
        self._again.set()

    async def _until_discovered(self) -> None:
        while True:
            if await self._discovered(resource.kind for resource in self._resources):
                return
            await asyncio.sleep(0.5 + 0.5 * self._jitter())

    async def _one_life(self) -> None:
        """Runs one engine in its own thread; returns when it has ended, ends it when cancelled."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        engine: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

        async def live() -> None:
            # kopf could be stopped by a threading.Event, too; but the thread in which it waits for one would keep
            # asyncio.run from returning after kopf has ended by itself, and nobody would start it again.
            stop = asyncio.Event()
            engine.append((asyncio.get_running_loop(), stop))
            asyncio.get_running_loop().set_exception_handler(_left_over)
            await self._engine(loop, stop)

        def thread() -> None:
            try:
                asyncio.run(live())
            except Exception as error:
                log.warning("kopf: %s: %s", type(error).__name__, error)
            finally:
                _tell_loop(loop, ended.set)

        # A daemon, so that a watcher that will not end cannot keep the process from ending.
        threading.Thread(target=thread, name="kopf", daemon=True).start()
        self._again.clear()
        self.running = True
        waiters = [asyncio.create_task(event.wait()) for event in (ended, self._again)]
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.running = False
            for waiter in waiters:
                waiter.cancel()
            for engine_loop, stop in engine:
                _tell_loop(engine_loop, stop.set)

    async def _engine(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        where: dict[str, Any] = {"namespaces": self._namespaces} if self._namespaces else {"clusterwide": True}
        await kopf.operator(
            registry=self._registry(loop), settings=engine_settings(), standalone=True, stop_flag=stop, **where
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
            _tell_loop(loop, lambda: self._tell(kind, body, gone))

        return ring

    def _tell(self, kind: str, body: Any, gone: bool) -> None:
        try:
            if gone:
                self._news.gone(primary_key(kind, body), int(body["metadata"]["resourceVersion"]))
            else:
                self._news.primary(kind, body)
        except Exception:
            log.exception("%s: what kopf told could not be taken in; the audit will find it", kind)


def _tell_loop(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    """Has a function called in the thread of a loop, unless that has ended."""
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:
        log.debug("the event loop has ended already")


def _left_over(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What is left of a kopf that has ended; the exception that ended it is logged where it surfaces."""
    log.debug("kopf: %s: %r", context.get("message"), context.get("exception"))


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
    settings.networking.error_backoffs = (0.5, 1, 2)  # soon started again, with less delay than it would take
    return settings

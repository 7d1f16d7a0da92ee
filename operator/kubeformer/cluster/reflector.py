"""Reflector: keeps the store's picture of one kind true, by a list and then a watch, for as long as it runs.

It ends only when cancelled. Whatever the API server does (is killed, answers 500, forgets history with 410 Gone, falls
silent), the reflector tries again after a jittered pause and goes on from the last version it saw; only after 410
does it list anew, and then says what has gone in between, which a watch alone would never tell.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from kubeformer.cluster.resources import Resource
from kubeformer.cluster.transport import Answer, Transport, Unreachable
from kubeformer.kit.child import Json
from kubeformer.kit.view import Key

log = logging.getLogger(__name__)

PAGE = 500
WATCH_SECONDS = 300  # the API server ends a watch after this long or up to twice as long
SILENCE_SECONDS = 150.0  # bookmarks come every minute or so; after this the stream is taken for dead
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0


class Sink(Protocol):
    """Who is told; control.news.News is one."""

    def changed(self, kind: str, body: Json) -> bool:
        """An object was added or changed."""

    def gone(self, key: Key, resource_version: int) -> bool:
        """An object was deleted."""

    def listed(self, kind: str, present: Iterable[Key], resource_version: int) -> int:
        """These are all the objects there are; each has been told by `changed` before."""

    def rewound(self, kind: str) -> None:
        """Versions have gone backwards: etcd was restored from a backup."""


class _Expired(Exception):
    """The version to go on from is too old, or unusable: list anew."""


class Reflector:
    """See the module's docstring. `selectors` are query parameters (labelSelector, fieldSelector).

    `jitter` returns a number in [0, 1). `synced` is set after the first list; `alive` says whether the last
    attempt worked.
    """

    def __init__(
        self,
        transport: Transport,
        resource: Resource,
        sink: Sink,
        jitter: Callable[[], float],
        *,
        namespace: str | None = None,
        selectors: Mapping[str, str] | None = None,
        silence_seconds: float = SILENCE_SECONDS,
        longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
    ) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
        self.alive = False
        self.lists = 0
        self._transport = transport
        self._sink = sink
        self._jitter = jitter
        self._path = resource.path(namespace)
        self._namespace = namespace
        self._selectors = dict(selectors or {})
        self._silence_seconds = silence_seconds
        self._longest_pause_seconds = longest_pause_seconds
        self._version: int | None = None
        self._seen = -1  # the newest version ever seen, to notice that history went back
        self._present: set[Key] = set()

    async def run(self) -> None:
        """Runs until cancelled."""
        failures = 0
        while True:
            try:
                if self._version is None:
                    await self._list()
                before = self._version
                await self._watch()
                failures = 0 if self._version != before else min(failures, 1)
            except _Expired as expired:
                log.info("%s: lists anew: %s", self.resource.plural, expired)
                self._version = None
            except Unreachable as error:
                if self.alive:
                    log.warning("%s: %s", self.resource.plural, error)
                self.alive = False
                failures += 1
            except Exception:
                log.exception("%s: unexpected; lists anew", self.resource.plural)
                self.alive = False
                self._version = None
                failures += 1
            longest = min(self._longest_pause_seconds, FIRST_PAUSE_SECONDS * 2.0 ** min(failures, 16))
            await asyncio.sleep(longest * (0.5 + 0.5 * self._jitter()))

    async def _list(self) -> None:
        params = {"limit": str(PAGE), **self._selectors}
        present: set[Key] = set()
        bodies: list[Json] = []
        while True:
            answer = await self._transport.get(self._path, params)
            if answer.status == 410:
                raise _Expired("the list took too long")
            if not answer.ok:
                raise Unreachable(f"listing {self._path}: {answer.message}")
            bodies += answer.body.get("items") or []
            metadata = answer.body["metadata"]
            if not metadata.get("continue"):
                break
            params["continue"] = metadata["continue"]
        version = int(metadata["resourceVersion"])
        newest = max((int(body["metadata"]["resourceVersion"]) for body in bodies), default=0)
        if self._seen > max(version, newest):
            log.warning(
                "%s: the API server's history went back from %d to %d", self.resource.plural, self._seen, version
            )
            self._sink.rewound(self.resource.kind)
        for body in bodies:
            present.add(self._key(body))
            self._sink.changed(self.resource.kind, body)
        if self._namespace is None:
            self._sink.listed(self.resource.kind, present, version)
        else:  # other reflectors tell of other namespaces
            for key in self._present - present:
                self._sink.gone(key, version)
        self._present = present
        self._version = self._seen = version
        self.lists += 1
        self.alive = True
        self.synced.set()

    async def _watch(self) -> None:
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": str(self._version),
            "timeoutSeconds": str(int(WATCH_SECONDS * (1 + self._jitter()))),
            **self._selectors,
        }
        async with self._transport.stream(self._path, params, self._silence_seconds) as stream:
            if isinstance(stream, Answer):
                if stream.status in (400, 410):
                    raise _Expired(stream.message)
                raise Unreachable(f"watching {self._path}: {stream.message}")
            self.alive = True
            async for event in stream:
                self._take(event)

    def _take(self, event: Json) -> None:
        kind, body = event.get("type"), event.get("object") or {}
        if kind == "ERROR":
            if body.get("code") == 410:
                raise _Expired(str(body.get("message") or "410 Gone"))
            raise Unreachable(f"watching {self._path}: {body.get('message') or body}")
        version = int(body["metadata"]["resourceVersion"])
        if kind in ("ADDED", "MODIFIED"):
            self._present.add(self._key(body))
            self._sink.changed(self.resource.kind, body)
        elif kind == "DELETED":
            self._present.discard(self._key(body))
            self._sink.gone(self._key(body), version)
        self._version = version
        self._seen = max(self._seen, version)

    def _key(self, body: Json) -> Key:
        m = body["metadata"]
        return Key(self.resource.kind, m.get("namespace", ""), m["name"])

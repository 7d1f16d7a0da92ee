"""Poller: reads GET /progress of every worker pod that plans name, and wakes a job when that matters.

What changes with every step (step, loss, speed, heartbeat) is kept for the next look and wakes the job at most every
`progress_seconds`, so that a running job costs next to nothing; anything else in a report wakes it at once.
A pod that does not answer keeps its last report: the planner sees how old it is.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from kubeformer.contract.names import PORT_PROGRESS
from kubeformer.control.news import News
from kubeformer.control.store import Store
from kubeformer.kit.child import Json
from kubeformer.kit.view import Key

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0
LARGEST_ANSWER = 256 * 1024
MERE_PROGRESS = frozenset({"step", "epoch", "metrics", "tokensPerSecond", "heartbeatTime", "bestMetrics", "bestStep"})
"""Fields of contract.progress.Progress whose change can wait for the next write of progress."""


def matters(before: Json | None, after: Json) -> bool:
    """Whether the job should be looked at now because of this report."""
    if before is None:
        return True
    return any(before.get(name) != after.get(name) for name in {*before, *after} - MERE_PROGRESS)


@dataclass(slots=True)
class _Pod:
    key: Key
    ip: str
    woken: float = 0.0
    failures: int = 0


class Poller:
    """See the module's docstring. `clock` is seconds since the epoch, `jitter` a number in [0, 1).

    `leading` says whether this replica leads; the others poll nobody. `address` makes a URL of a pod's IP.
    """

    def __init__(
        self,
        store: Store,
        news: News,
        *,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        leading: asyncio.Event,
        poll_seconds: float = 3.0,
        at_once: int = 32,
        progress_seconds: float = 15.0,
        address: Callable[[str], str] | None = None,
    ) -> None:
        self._store = store
        self._news = news
        self._clock = clock
        self._jitter = jitter
        self._leading = leading
        self._poll_seconds = poll_seconds
        self._at_once = asyncio.Semaphore(at_once)
        self._progress_seconds = progress_seconds
        self._address = address or progress_url
        self._pods: dict[str, _Pod] = {}  # by uid
        self._of_key: dict[Key, frozenset[str]] = {}
        self._some = asyncio.Event()

    def watch(self, key: Key, pods: tuple[tuple[str, str], ...]) -> None:
        """From now on the key's pods are these (uid, IP), and no others."""
        now = frozenset(uid for uid, ip in pods if ip)
        for uid in self._of_key.pop(key, frozenset()) - now:
            self._pods.pop(uid, None)
        for uid, ip in pods:
            if ip and (uid not in self._pods or self._pods[uid].ip != ip):
                self._pods[uid] = _Pod(key, ip)
        if now:
            self._of_key[key] = now
            self._some.set()

    async def run(self) -> None:
        """Polls until cancelled; every pod about once in `poll_seconds`, spread over that time."""
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS), connector=aiohttp.TCPConnector(limit=0)
        ) as session:
            while True:
                await self._leading.wait()
                if not self._pods:
                    self._some.clear()
                    await self._some.wait()
                await asyncio.gather(*(self._poll(session, uid, pod) for uid, pod in tuple(self._pods.items())))
                await asyncio.sleep(self._poll_seconds * (0.75 + 0.5 * self._jitter()))

    async def _poll(self, session: aiohttp.ClientSession, uid: str, pod: _Pod) -> None:
        async with self._at_once:
            try:
                body = await self._read(session, pod.ip)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                pod.failures += 1
                log.debug("%s: pod %s does not answer: %s", pod.key, pod.ip, str(error) or type(error).__name__)
                return
        if self._pods.get(uid) is not pod:
            return  # nobody asks for it any more
        pod.failures = 0
        before = self._store.report(uid)
        if before is not None and before.body == body:
            self._news.report(pod.key, uid, body, self._clock(), wake=False)
            return
        now = self._clock()
        wake = matters(before.body if before else None, body) or now - pod.woken >= self._progress_seconds
        if wake:
            pod.woken = now
        self._news.report(pod.key, uid, body, now, wake=wake)

    async def _read(self, session: aiohttp.ClientSession, ip: str) -> Json:
        async with session.get(self._address(ip), allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}")
            raw = await response.content.read(LARGEST_ANSWER + 1)
            while len(raw) <= LARGEST_ANSWER and not response.content.at_eof():
                raw += await response.content.read(LARGEST_ANSWER + 1 - len(raw))
        if len(raw) > LARGEST_ANSWER:
            raise ValueError(f"more than {LARGEST_ANSWER} bytes")
        body: Any = json.loads(raw)
        if not isinstance(body, dict):
            raise ValueError("not a JSON object")
        return body


def progress_url(ip: str) -> str:
    """Where the launcher of the pod with this IP speaks."""
    return f"http://[{ip}]:{PORT_PROGRESS}/progress" if ":" in ip else f"http://{ip}:{PORT_PROGRESS}/progress"

"""Operator: puts the rooms together and runs them until told to stop.

Order: look at everything once (so that nobody plans from half a picture), then watch; lead, then work. On
stop: finish the steps that have begun, give the lease back, close.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from kubeformer.app.doorbell import Doorbell
from kubeformer.app.health import HealthServer
from kubeformer.app.metrics import Metrics
from kubeformer.app.poller import Poller
from kubeformer.app.settings import Settings
from kubeformer.cluster.events import EventRecorder
from kubeformer.cluster.lease import LeaderLease, LeaseTimes
from kubeformer.cluster.reader import LiveReader
from kubeformer.cluster.reflector import Reflector
from kubeformer.cluster.resources import MODEL_DEPLOYMENT, RESOURCES, TRAINING_JOB
from kubeformer.cluster.transport import Transport
from kubeformer.cluster.writer import ClusterWriter, TokenBucket
from kubeformer.contract.names import LABEL_MANAGED_BY, LABEL_MODEL_DEPLOYMENT, LABEL_TRAINING_JOB, MANAGED_BY
from kubeformer.control.audit import Auditor
from kubeformer.control.dependencies import Dependencies
from kubeformer.control.gate import Gate
from kubeformer.control.news import News
from kubeformer.control.ports import ReadError
from kubeformer.control.queue import Lane, WorkQueue
from kubeformer.control.store import Store
from kubeformer.control.worker import Controller, Loop
from kubeformer.kit.child import UNLABELLED

log = logging.getLogger(__name__)

PRIMARIES = {LABEL_TRAINING_JOB: TRAINING_JOB, LABEL_MODEL_DEPLOYMENT: MODEL_DEPLOYMENT}
CHILDREN = (
    "Job",
    "Pod",
    "Service",
    "ConfigMap",
    "Deployment",
    "PodDisruptionBudget",
    "PersistentVolumeClaim",
    "Node",
)
OURS = {"labelSelector": f"{LABEL_MANAGED_BY}={MANAGED_BY}"}
NOT_THE_ROOT_CA = {"fieldSelector": "metadata.name!=kube-root-ca.crt"}  # one in every namespace, read by nobody here
STOP_SECONDS = 10.0


def selectors(kind: str) -> Mapping[str, str]:
    """The query parameters with which a child kind is watched."""
    if kind == "ConfigMap":
        return NOT_THE_ROOT_CA
    return {} if kind in UNLABELLED else OURS


class Operator:
    """See the module's docstring. `controllers` has one entry for each of our kinds.

    `doorbell` makes what watches them; tests put another in its place.
    """

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        controllers: Mapping[str, Controller],
        identity: str,
        *,
        doorbell: type[Doorbell] = Doorbell,
    ) -> None:
        self._settings = settings
        self._controllers = dict(controllers)
        self.metrics = Metrics()
        children = (*CHILDREN, "PodGroup") if settings.gangs else CHILDREN

        self.store = Store(labels=PRIMARIES)
        self.queue = WorkQueue(time.time, random.random)
        gate = Gate(self.store)
        kinds = tuple(resource.kind for resource in PRIMARIES.values())
        dependencies = Dependencies(kinds, {label: resource.kind for label, resource in PRIMARIES.items()})
        self.news = News(self.store, self.queue, gate, dependencies)

        election = settings.leader_election
        self.lease = LeaderLease(
            transport,
            election.namespace,
            election.name,
            identity,
            LeaseTimes(election.lease_seconds, election.renew_deadline_seconds, election.retry_seconds),
            monotonic=time.monotonic,
            wall=time.time,
            on_leading=lambda: self.news.everything(self._controllers),
        )
        bucket = TokenBucket(settings.writes_per_second, settings.write_burst, time.monotonic)
        writer = ClusterWriter(transport, leads=self.lease.leads, bucket=bucket, count=self.metrics.wrote)
        self._reader = LiveReader(transport, settings.namespaces, {kind: selectors(kind) for kind in children})
        self._recorder = EventRecorder(transport, identity, time.time, self.lease.leads, self.metrics.wrote)
        self._poller = Poller(
            self.store,
            self.news,
            clock=time.time,
            jitter=random.random,
            leading=self.lease.leading,
            poll_seconds=settings.poll_seconds,
            at_once=settings.polls_at_once,
            progress_seconds=settings.progress_status_seconds,
        )
        self._loop = Loop(
            self._controllers,
            store=self.store,
            queue=self.queue,
            gate=gate,
            news=self.news,
            dependencies=dependencies,
            writer=writer,
            reader=self._reader,
            recorder=self._recorder,
            clock=time.time,
            polled=self._poller.watch,
            meter=self.metrics,
            progress_seconds=settings.progress_status_seconds,
        )
        self._auditor = Auditor(self.store, self.news, self._reader, self.metrics)
        self._audit_now = asyncio.Event()
        self._doorbell = doorbell(
            transport.credentials,
            PRIMARIES.values(),
            self.news,
            namespaces=settings.namespaces,
            jitter=random.random,
            monotonic=time.monotonic,
            discovered=self._reader.discovered,
            after_restart=self._audit_now.set,
        )
        self._reflectors = [
            Reflector(
                transport,
                RESOURCES[kind],
                self.news,
                random.random,
                namespace=namespace,
                selectors=selectors(kind),
            )
            for kind in children
            for namespace in (settings.namespaces if RESOURCES[kind].namespaced else ()) or (None,)
        ]
        self._children = children
        self._primed = False
        self.health = HealthServer(settings.health_port, self.unready, self.metrics)
        self._gauges()

    def unready(self) -> Sequence[str]:
        """What is missing before this replica sees all it has to see."""
        missing = [] if self._primed else ["our own kinds have not been listed; are the CRDs installed?"]
        for reflector in self._reflectors:
            if not reflector.synced.is_set():
                missing.append(f"{reflector.resource.plural} have not been listed")
            elif not reflector.alive:
                missing.append(f"{reflector.resource.plural} cannot be watched")
        return missing

    async def run(self, stopping: asyncio.Event) -> None:
        """Runs until `stopping`; whatever ends by itself is an error and is raised."""
        port = await self.health.start()
        log.info("health and metrics on port %d", port)
        background: list[asyncio.Task[None]] = []
        stop = asyncio.create_task(stopping.wait())

        def start(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            task = asyncio.create_task(work, name=name)
            background.append(task)
            return task

        try:
            for reflector in self._reflectors:
                start(f"reflector of {reflector.resource.plural}", reflector.run())
            priming = start("first look", self._prime())
            await asyncio.wait({priming, stop}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.is_set():
                return
            background.remove(priming)
            priming.result()
            start("kopf", self._doorbell.run())
            start("audit", self._audit())
            start("poller", self._poller.run())
            start("events", self._recorder.run())
            lease = start("lease", self.lease.run())
            work = asyncio.create_task(self._loop.run(self._settings.reconcilers, self.lease.leading, stopping))
            done, _ = await asyncio.wait({*background, stop, work}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()
            await asyncio.wait({work}, timeout=STOP_SECONDS)
            try:
                await asyncio.wait_for(self._recorder.flush(), 2.0)
            except TimeoutError:
                pass
            lease.cancel()  # gives it back
            await asyncio.wait({lease}, timeout=STOP_SECONDS)
            work.cancel()
        finally:
            stop.cancel()
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self.health.stop()

    async def _prime(self) -> None:
        """Looks at everything once. Children come through their reflectors, our own kinds through one list."""
        pause = 0.5
        for resource in PRIMARIES.values():
            while True:
                try:
                    for body in await self._reader.whole(resource.kind):
                        self.news.primary(resource.kind, body, Lane.PERIODIC)
                    break
                except ReadError as error:
                    log.warning("cannot list %s yet: %s", resource.plural, error)
                    await asyncio.sleep(pause * (0.5 + 0.5 * random.random()))
                    pause = min(10.0, pause * 1.5)
        self._primed = True
        for reflector in self._reflectors:
            await reflector.synced.wait()
        log.info("has seen everything once")

    async def _audit(self) -> None:
        """Audits all kinds, one after the other, for ever; our own at once after kopf was restarted."""
        kinds = tuple(self._controllers)
        every = self._settings.audit_seconds
        turn = 0
        while True:
            try:
                await asyncio.wait_for(self._audit_now.wait(), every * (0.75 + 0.5 * random.random()))
            except TimeoutError:
                pass
            self._audit_now.clear()
            turn += 1
            child = self._children[turn % len(self._children)]  # reflectors are reliable: one kind at a time
            for kind in (*kinds, child):
                try:
                    if await self._auditor.audit(kind) and kind in kinds:
                        self._doorbell.start_again()
                except ReadError as error:
                    log.warning("audit of %s: %s", kind, error)

    def _gauges(self) -> None:
        gauge: Callable[[str, str, Callable[[], float]], None] = self.metrics.gauge
        gauge("queue_depth", "Keys that wait for a worker.", lambda: len(self.queue))
        gauge("queue_delayed", "Keys that wait for their time.", lambda: self.queue.delayed)
        gauge("leader", "1 while this replica writes.", lambda: float(self.lease.leads()))
        gauge("kopf_restarts", "How often kopf had to be started again.", lambda: self._doorbell.restarts)
        gauge("watches_down", "Watches that cannot be kept up.", lambda: sum(not r.alive for r in self._reflectors))

"""LeaderLease: one of several replicas writes, the others only watch.

A Lease of coordination.k8s.io, taken and renewed by updates that carry its resourceVersion, so that two can never both
succeed. Nobody's clock is compared with anybody else's: a candidate waits until the record has not changed for the
lease's whole length on its own monotonic clock; the leader stops believing in itself when it could not renew for the
(shorter) renewal deadline. `leads` is asked before every write. On a clean end the Lease is given back at once.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kubeformer.cluster.resources import LEASE
from kubeformer.cluster.transport import Answer, Transport, Unreachable
from kubeformer.kit.child import Json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds: how long a lease lasts, when its holder gives up, and how often both try."""

    lease: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0


class LeaderLease:
    """See the module's docstring. `leading` is set while this replica leads.

    `monotonic` measures, `wall` only fills in the times that people read in the Lease. `on_leading` is called each
    time this replica becomes the leader, before it works.
    """

    def __init__(
        self,
        transport: Transport,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes,
        *,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        on_leading: Callable[[], None] = lambda: None,
    ) -> None:
        self.leading = asyncio.Event()
        self.identity = identity
        self._transport = transport
        self._namespace = namespace
        self._name = name
        self._times = times
        self._monotonic = monotonic
        self._wall = wall
        self._on_leading = on_leading
        self._path = LEASE.path(namespace, name)
        self._renewed: float | None = None  # when this replica last took or renewed it
        self._record: tuple[str, str, str] | None = None  # what was last seen: holder, version, uid
        self._since = 0.0  # and since when
        self._complained = False

    def leads(self) -> bool:
        """Whether this replica may write now."""
        return self._renewed is not None and self._monotonic() - self._renewed < self._times.renew_deadline

    async def run(self) -> None:
        """Tries to lead, for ever; on cancellation gives the lease back."""
        try:
            while True:
                started = self._monotonic()
                await self._try(started)
                if self._renewed is not None and not self.leads():
                    log.error(
                        "could not renew the lease for %g s: writes nothing from now on", self._times.renew_deadline
                    )
                    self._renewed = None
                if self.leads() != self.leading.is_set():
                    if self.leads():
                        log.info("%s leads", self.identity)
                        self._on_leading()
                        self.leading.set()
                    else:
                        log.warning("%s no longer leads", self.identity)
                        self.leading.clear()
                await asyncio.sleep(self._times.retry)
        finally:
            await self._release()

    async def _try(self, started: float) -> None:
        """One attempt to take or renew. What is unknown stays as it is; time decides."""
        patience = max(0.5, min(self._times.retry * 2, self._times.renew_deadline / 2))
        try:
            answer = await self._transport.request("GET", self._path, seconds=patience)
            if answer.status == 404:
                answer = await self._create(patience)
                self._took(answer, started)
                return
            if not answer.ok:
                self._complain(answer.message)
                return
            lease = answer.body
            holder = str(lease["spec"].get("holderIdentity") or "")
            record = (holder, lease["metadata"]["resourceVersion"], lease["metadata"]["uid"])
            if record != self._record:
                self._record, self._since = record, started
            mine = holder == self.identity
            if not mine:
                self._renewed = None
                length = float(lease["spec"].get("leaseDurationSeconds") or self._times.lease)
                if holder and started - self._since < length:
                    return
            body = self._body(lease, holder if not mine else None)
            self._took(await self._transport.request("PUT", self._path, body=body, seconds=patience), started)
        except Unreachable as error:
            self._complain(str(error))

    def _complain(self, message: str | None) -> None:
        """Logs the first of a row of failures; None ends the row."""
        if message is not None and not self._complained:
            log.warning("lease: %s", message)
        self._complained = message is not None

    def _took(self, answer: Answer, started: float) -> None:
        if answer.ok:
            self._renewed = started  # counted from before the request was sent, to be on the safe side
            self._complain(None)
        elif answer.status != 409:  # after a conflict the next look tells who holds it
            self._complain(answer.message)

    async def _create(self, patience: float) -> Answer:
        metadata = {"namespace": self._namespace, "name": self._name}
        body = self._body({"metadata": metadata, "spec": {"leaseTransitions": -1}}, taken_from="")
        return await self._transport.request("POST", LEASE.path(self._namespace), body=body, seconds=patience)

    def _body(self, lease: Json, taken_from: str | None) -> Json:
        spec = dict(lease["spec"])
        now = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec |= {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._times.lease)),
            "renewTime": now,
        }
        if taken_from is not None:
            spec |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": lease["metadata"], "spec": spec}

    async def _release(self) -> None:
        if not self.leads():
            return
        self._renewed = None
        self.leading.clear()
        try:
            answer = await self._transport.request("GET", self._path, seconds=3.0)
            if answer.ok and answer.body["spec"].get("holderIdentity") == self.identity:
                spec = {**answer.body["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                body = {**answer.body, "spec": spec}
                await self._transport.request("PUT", self._path, body=body, seconds=3.0)
                log.info("gave the lease back")
        except Unreachable as error:
            log.warning("could not give the lease back: %s", error)

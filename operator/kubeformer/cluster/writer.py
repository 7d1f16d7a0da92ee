"""Writer: the only door out. Every write of the operator to the API server, except its Lease and events, goes here.

Server-side apply with one field manager a controller, deletions with preconditions, statuses through /status. A
token bucket keeps the rate down, a fence lets nothing out of a process that does not lead, and what the API server
answers comes back as a value that the loop can tell apart.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from kubeformer.cluster.resources import RESOURCES
from kubeformer.cluster.transport import APPLY_PATCH, JSON, MERGE_PATCH, Answer, Transport, Unreachable
from kubeformer.contract.names import LABEL_MANAGED_BY, MANAGED_BY
from kubeformer.control.ports import Outcome, Primary, Refused, Why, Written
from kubeformer.control.sameness import plain
from kubeformer.kit.child import Json
from kubeformer.kit.plan import Delete

UNTYPED = "failed to create typed patch object"
"""How the API server says, with status 500, that an applied object has a field which its kind has not."""

Count = Callable[[str, str, str], None]
"""Told of every write: verb, kind, outcome."""


class TokenBucket:
    """Lets `rate` through a second, and `burst` at once after a rest. `clock` is monotonic, in seconds."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._at = clock()

    def reserve(self) -> float:
        """Takes a token, now or from the future; returns how long to wait for it."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self._rate)


class ClusterWriter:
    """See the module's docstring and control.ports.Writer. `leads` is asked before every write."""

    def __init__(
        self,
        transport: Transport,
        *,
        leads: Callable[[], bool],
        bucket: TokenBucket,
        count: Count = lambda verb, kind, outcome: None,
    ) -> None:
        self._transport = transport
        self._leads = leads
        self._bucket = bucket
        self._count = count

    async def apply(self, manager: str, body: Json) -> Outcome:
        """See control.ports.Writer. Every object gets our managed-by label, or we would not see it again."""
        resource = RESOURCES[body["kind"]]
        labelled = _labelled(body)
        m = labelled["metadata"]
        path = resource.path(m.get("namespace"), m["name"])
        return await self._apply("apply", body["kind"], path, manager, labelled)

    async def create(self, manager: str, body: Json) -> Outcome:
        """See control.ports.Writer."""
        path = RESOURCES[body["kind"]].path(body["metadata"].get("namespace"))
        params = {"fieldManager": manager, "fieldValidation": "Strict"}
        return await self._send("create", body["kind"], "POST", path, params, _labelled(body), JSON)

    async def delete(self, action: Delete) -> Outcome:
        """See control.ports.Writer."""
        preconditions = {"uid": action.uid}
        if action.resource_version is not None:
            preconditions["resourceVersion"] = action.resource_version
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": preconditions,
            "propagationPolicy": action.propagation,
        }
        key = action.key
        outcome = await self._send("delete", key.kind, "DELETE", RESOURCES[key.kind].path_of(key), {}, options, JSON)
        if isinstance(outcome, Written) and outcome.body.get("kind") == "Status":
            return Written({})
        return outcome

    async def status(self, manager: str, primary: Primary, status: Mapping[str, Any]) -> Outcome:
        """See control.ports.Writer. The version keeps a status off a namesake that was made since.

        (The uid would not: the API server ignores it when a custom resource's status is applied.)
        """
        key = primary.key
        seen = {"namespace": key.namespace, "name": key.name, "resourceVersion": primary.resource_version}
        body = {"apiVersion": primary.api_version, "kind": key.kind, "metadata": seen, "status": plain(status)}
        path = RESOURCES[key.kind].path_of(key, "status")
        return await self._apply("status", key.kind, path, manager, body)

    async def finalizers(self, manager: str, primary: Primary, finalizers: tuple[str, ...]) -> Outcome:
        """See control.ports.Writer."""
        metadata = {
            "uid": primary.uid,
            "resourceVersion": primary.resource_version,
            "finalizers": list(finalizers),
        }
        key = primary.key
        params = {"fieldManager": manager, "fieldValidation": "Strict"}
        path = RESOURCES[key.kind].path_of(key)
        return await self._send("finalizers", key.kind, "PATCH", path, params, {"metadata": metadata}, MERGE_PATCH)

    async def _apply(self, verb: str, kind: str, path: str, manager: str, body: Json) -> Outcome:
        params = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        return await self._send(verb, kind, "PATCH", path, params, body, APPLY_PATCH)

    async def _send(
        self, verb: str, kind: str, method: str, path: str, params: Mapping[str, str], body: Json, content_type: str
    ) -> Outcome:
        wait = self._bucket.reserve()
        if wait > 0:
            await asyncio.sleep(wait)
        if not self._leads():
            outcome: Outcome = Refused(Why.FENCED, "this replica does not hold the lease")
        else:
            try:
                answer = await self._transport.request(
                    method, path, params=params, body=body, content_type=content_type
                )
                outcome = _outcome(answer)
            except Unreachable as error:
                outcome = Refused(Why.UNAVAILABLE, str(error))
        self._count(verb, kind, "Done" if isinstance(outcome, Written) else outcome.why)
        return outcome


def _labelled(body: Json) -> dict[str, Any]:
    whole: dict[str, Any] = plain(body)
    metadata = whole["metadata"]
    return {
        **whole,
        "metadata": {**metadata, "labels": {**(metadata.get("labels") or {}), LABEL_MANAGED_BY: MANAGED_BY}},
    }


def _outcome(answer: Answer) -> Outcome:
    if answer.ok:
        return Written(answer.body)
    if answer.status == 409:
        why = Why.EXISTS if answer.reason == "AlreadyExists" else Why.CONFLICT
    elif answer.status in (400, 413, 415, 422) or answer.message.startswith(UNTYPED):
        why = Why.INVALID
    elif answer.status == 403:
        why = Why.FORBIDDEN
    elif answer.status == 404:
        why = Why.NOT_FOUND
    else:  # 401, 408, 429, 5xx
        why = Why.UNAVAILABLE
    return Refused(why, answer.message, answer.retry_after_seconds)

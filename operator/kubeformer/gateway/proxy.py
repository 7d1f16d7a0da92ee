"""The proxy: takes a request, finds who answers to its model's name, and passes bytes both ways.

A replica that refuses the connection, or says 503 because it drains, before a byte has been passed on costs the
client nothing: another replica is asked. Once bytes flow, an upstream that breaks ends the client's connection, since
a half answer must not look like a whole one.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from kubeformer.gateway import errors
from kubeformer.gateway.catalog import Catalog
from kubeformer.gateway.metrics import Metrics
from kubeformer.routing.pick import pick
from kubeformer.routing.table import Endpoint, Target

PROXIED = (
    *("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/classify", "/pooling"),
    *("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank", "/tokenize", "/detokenize"),
)
MAX_BODY_BYTES = 16 * 1024 * 1024
ATTEMPTS = 3
# Headers that belong to one connection (RFC 9110, 7.6.1), and those that aiohttp computes anew.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
NOT_FORWARDED = HOP_BY_HOP | {"host", "content-length", "content-encoding", "accept-encoding"}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, read: where to, for whom, and the bytes to send on."""

    path: str
    model: str
    target: Target
    body: bytes
    headers: Mapping[str, str]


class Proxy:
    """Handlers over a catalog. `session` connects to replicas; `clock` is monotonic, in seconds."""

    def __init__(
        self, catalog: Catalog, session: aiohttp.ClientSession, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._catalog = catalog
        self._session = session
        self._metrics = metrics
        self._clock = clock
        self._outstanding: Counter[Endpoint] = Counter()
        self._turn = 0

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models: the names that somebody ready answers to."""
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": target.qualified_name}
            for name, target in self._catalog.table.served()
            if target.endpoints
        ]
        return web.json_response({"object": "list", "data": listed})

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """POST to one of PROXIED."""
        started = self._clock()
        ask = await self._read(request)
        if isinstance(ask, web.Response):
            self._metrics.requests.labels("", str(ask.status)).inc()
            return ask
        with self._metrics.outstanding.labels(ask.target.qualified_name).track_inprogress():
            response = await self._try_replicas(request, ask, started)
        self._metrics.requests.labels(ask.target.qualified_name, str(response.status)).inc()
        return response

    async def _read(self, request: web.Request) -> Ask | web.Response:
        try:
            body = await request.read()
            document: Any = json.loads(body)
        except web.HTTPRequestEntityTooLarge:
            return errors.error(
                413, f"body: larger than {MAX_BODY_BYTES} bytes; send less text", "invalid_request_error"
            )
        except ValueError as wrong:
            return errors.invalid_request(f"body: not JSON ({wrong}); send a JSON object with a field 'model'")
        if not isinstance(document, dict):
            return errors.invalid_request("body: must be a JSON object with a field 'model'")
        model = document.get("model")
        if not isinstance(model, str) or not model:
            return errors.invalid_request(f"model: must be the name of a model, not {json.dumps(model)[:80]}", "model")
        table = self._catalog.table
        target = table.find(model)
        if target is None:
            return errors.unknown_model(model, [name for name, _ in table.served()])
        if not target.endpoints:
            return errors.not_ready(model, target.reason)
        if model not in target.served_names:  # namespace/name: replicas know the served names alone
            body = json.dumps({**document, "model": target.served_names[0]}).encode()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in NOT_FORWARDED}
        return Ask(request.path, model, target, body, headers)

    async def _try_replicas(self, request: web.Request, ask: Ask, started: float) -> web.StreamResponse:
        failed: dict[Endpoint, str] = {}
        while len(failed) < ATTEMPTS:
            # The table is looked up again: a replica that died a moment ago may have been taken out of it.
            target = self._catalog.table.find(ask.model) or ask.target
            endpoint = pick(target.endpoints, self._outstanding, self._turn, failed)
            if endpoint is None:
                break
            if failed:
                self._metrics.retries.labels(ask.target.qualified_name).inc()
            self._turn += 1
            self._outstanding[endpoint] += 1
            try:
                answer = await self._pass_on(request, ask, endpoint, started)
            finally:
                self._outstanding[endpoint] -= 1
            if isinstance(answer, web.StreamResponse):
                return answer
            failed[endpoint] = answer
        if not failed:
            return errors.not_ready(ask.model, ask.target.reason)
        return errors.replicas_failed(ask.model, len(failed), "; ".join(sorted(set(failed.values()))))

    async def _pass_on(
        self, request: web.Request, ask: Ask, endpoint: Endpoint, started: float
    ) -> web.StreamResponse | str:
        """The replica's answer, passed on; or why it gave none, as long as nothing has been passed on."""
        try:
            upstream = await self._session.post(f"http://{endpoint}{ask.path}", data=ask.body, headers=ask.headers)
        except (aiohttp.ClientError, OSError) as wrong:
            return type(wrong).__name__
        async with upstream:
            if upstream.status == 503:
                return "it drains"
            response = web.StreamResponse(status=upstream.status, headers=_end_to_end(upstream.headers))
            if upstream.content_length is not None:
                response.content_length = upstream.content_length
            self._metrics.first_byte.labels(ask.target.qualified_name).observe(self._clock() - started)
            await response.prepare(request)
            try:
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
            except (aiohttp.ClientError, OSError):
                if request.transport is not None:
                    request.transport.abort()
                return response
            await response.write_eof()
            return response


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in headers.items() if k.lower() not in HOP_BY_HOP and k.lower() != "content-length"}

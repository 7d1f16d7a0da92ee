"""Transport: raw JSON over HTTP to the API server, and nothing about what it means.

One session of connections for all. An answer is an answer, whatever its status; only the lack of one is an exception
(Unreachable). Tokens are asked for before each request, and read again after a 401.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from kubeformer.cluster.credentials import Credentials, find
from kubeformer.kit.child import Json

REQUEST_SECONDS = 15.0
CONNECT_SECONDS = 5.0
CONNECTIONS = 128
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"  # YAML is what the API server calls it; JSON is YAML
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class Unreachable(Exception):
    """No answer, or not a whole one; whether the request was carried out is unknown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status code and the decoded body ({} where the body is not a JSON object)."""

    status: int
    body: Json
    retry_after_seconds: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the API server did what was asked."""
        return 200 <= self.status < 300

    @property
    def reason(self) -> str:
        """The machine-readable reason of a Status, or ""."""
        return str(self.body.get("reason") or "") if self.body.get("kind") == "Status" else ""

    @property
    def message(self) -> str:
        """What the API server says about a failure."""
        return str(self.body.get("message") or f"HTTP {self.status}")


class Transport:
    """See the module's docstring. Use as an async context manager; `user_agent` tells the API server who asks."""

    def __init__(self, credentials: Credentials, user_agent: str = "kubeformer") -> None:
        self.credentials = credentials
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    async def from_environment(cls, user_agent: str = "kubeformer") -> Self:
        """A transport with the credentials at hand. Raises CredentialsError."""
        return cls(await find(), user_agent)

    async def __aenter__(self) -> Self:
        tls = self.credentials.tls()
        connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=tls if tls is not None else True)
        self._session = aiohttp.ClientSession(
            connector=connector, headers={"User-Agent": self._user_agent, "Accept": JSON}, auto_decompress=True
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        seconds: float = REQUEST_SECONDS,
    ) -> Answer:
        """One request and its answer. Raises Unreachable."""
        data = None if body is None else json.dumps(body, default=dict).encode()
        headers = {"Accept": accept} | ({"Content-Type": content_type} if data is not None else {})
        timeout = aiohttp.ClientTimeout(total=seconds, connect=CONNECT_SECONDS)
        try:
            async with self._answer(method, path, params, headers, data, timeout) as response:
                return await _read(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{method} {path}: {_words(error)}") from error

    async def get(self, path: str, params: Mapping[str, str] | None = None, accept: str = JSON) -> Answer:
        """A read, tried a second time if the connection was stale. Raises Unreachable."""
        try:
            return await self.request("GET", path, params=params, accept=accept)
        except Unreachable:
            return await self.request("GET", path, params=params, accept=accept)

    @asynccontextmanager
    async def stream(
        self, path: str, params: Mapping[str, str], silence_seconds: float
    ) -> AsyncIterator[AsyncIterator[Json] | Answer]:
        """A watch: its JSON objects as they come, or the answer if it is not 200.

        Raises Unreachable when the connection fails or says nothing for `silence_seconds`.
        """
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=silence_seconds)
        try:
            async with self._answer("GET", path, params, {}, None, timeout) as response:
                yield _lines(response) if response.status == 200 else await _read(response)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unreachable(f"watch {path}: {_words(error)}") from error

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        data: bytes | None,
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        for attempt in (1, 2):
            authorization = await self.credentials.authorization()
            secret = {"Authorization": authorization} if authorization else {}
            response = await self._open(method, path, params, {**headers, **secret}, data, timeout)
            if response.status == 401 and attempt == 1:
                response.release()
                await self.credentials.reload()
                continue
            try:
                yield response
            finally:
                response.close() if not response.content.at_eof() else response.release()
            return

    async def _open(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        data: bytes | None,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("the transport is used outside of `async with`")
        return await self._session.request(
            method,
            self.credentials.server + path,
            params=dict(params or {}),
            headers=dict(headers),
            data=data,
            timeout=timeout,
            proxy=self.credentials.proxy,
            server_hostname=self.credentials.server_name,
        )


async def _read(response: aiohttp.ClientResponse) -> Answer:
    raw = await response.read()
    try:
        body: Any = json.loads(raw) if raw else {}
    except ValueError:
        body = {}
    after = response.headers.get("Retry-After", "")
    return Answer(response.status, body if isinstance(body, dict) else {}, float(after) if after.isdecimal() else None)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[Json]:
    """One JSON object a line, of any length."""
    rest = bytearray()
    async for piece in response.content.iter_any():
        rest += piece
        *lines, last = rest.split(b"\n")
        rest = bytearray(last)
        for line in lines:
            if line.strip():
                yield json.loads(line)
        await asyncio.sleep(0)  # a burst of events must not keep the others waiting


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__

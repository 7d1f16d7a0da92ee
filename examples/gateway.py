"""What the demo asks of the gateway: labels of texts, and a chat answer word by word. Standard library only."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any

RETRY_SECONDS = 60.0


class GatewayError(Exception):
    """The gateway's answer, where it is not the one hoped for."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A chat answer that is over."""

    text: str
    tokens: int
    first_seconds: float  # until the first token
    seconds: float  # of the whole answer


class Gateway:
    """A client. `url` is asked for each request, since a port-forward may have moved."""

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url

    def models(self) -> list[str]:
        """Names that requests may ask for."""
        with self._open("GET", "/v1/models", None) as response:
            return [model["id"] for model in json.load(response)["data"]]

    def classify(self, model: str, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        with self._open("POST", "/classify", {"model": model, "input": list(texts)}) as response:
            items = sorted(json.load(response)["data"], key=lambda item: item["index"])
        return [item["label"] for item in items]

    def chat(self, model: str, question: str, max_tokens: int, say: Callable[[str], None]) -> Spoken:
        """Ask, and `say` each piece of the answer as it comes."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        begin, first, text, tokens = time.monotonic(), 0.0, "", 0
        with self._open("POST", "/v1/chat/completions", body) as response:
            for chunk in events(response):
                if "error" in chunk:
                    raise GatewayError(str(chunk["error"].get("message", chunk["error"])))
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                for choice in chunk.get("choices", []):
                    piece = choice["delta"].get("content")
                    if piece:
                        first = first or time.monotonic() - begin
                        text += piece
                        say(piece)
        return Spoken(text, tokens, first, time.monotonic() - begin)

    def _open(self, method: str, path: str, body: dict[str, Any] | None) -> HTTPResponse:
        """The response. Tries again for a minute where nobody answers or the model is not there yet."""
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(
                self._url() + path, data, {"Content-Type": "application/json"}, method=method
            )
            try:
                response = urllib.request.urlopen(request, timeout=120)
                assert isinstance(response, HTTPResponse)
                return response
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace").strip()
                if error.code not in (404, 502, 503) or time.monotonic() > deadline:
                    raise GatewayError(f"{method} {path}: {error.code} {said[:500]}") from error
            except (OSError, HTTPException) as error:
                if time.monotonic() > deadline:
                    raise GatewayError(f"{method} {path}: {error}") from error
            time.sleep(1.0)


def events(lines: Iterator[bytes] | HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event, up to [DONE]."""
    for line in lines:
        if line.startswith(b"data: "):
            data = line.removeprefix(b"data: ").strip()
            if data == b"[DONE]":
                return
            yield json.loads(data)

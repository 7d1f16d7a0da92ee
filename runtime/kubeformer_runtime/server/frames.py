"""A streamed answer as server-sent events. Pure: deltas in, bytes out.

Most chunks differ from the one before by their text alone, so each choice keeps its chunk as bytes with a gap for
the text; only chunks that say more are written anew.
"""

import json
from dataclasses import replace
from json.encoder import encode_basestring  # the C function behind json.dumps
from typing import Any

from kubeformer_runtime.engine.core import Delta
from kubeformer_runtime.server.chat_shape import ChatShape
from kubeformer_runtime.server.errors import ApiError
from kubeformer_runtime.server.prepare import Generation
from kubeformer_runtime.server.protocol import StreamOptions
from kubeformer_runtime.server.shapes import CompletionShape, Usage
from kubeformer_runtime.server.tools import CallReader

DONE = b"data: [DONE]\n\n"
GAP = "\ue000the text\ue000"


def frame(document: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class ChunkFrames:
    """The chunks of one request of /v1/completions or /v1/chat/completions."""

    def __init__(self, generation: Generation, options: StreamOptions, usage: Usage) -> None:
        """`usage` is counted elsewhere, up to the delta that is given in."""
        self._generation, self._options, self._usage = generation, options, usage
        self._shape: ChatShape | CompletionShape = generation.shape
        self._head = generation.head
        self._places = {request.request_id: place for place, request in enumerate(generation.requests)}
        wishes = generation.shape.wishes
        self._says_tokens = wishes.logprobs or wishes.token_ids
        self._simple = not (self._says_tokens or options.continuous_usage_stats or generation.interval > 1)
        self._gaps: dict[int, tuple[bytes, bytes]] = {}
        self._readers: dict[int, CallReader] = {}
        self._held: dict[int, Delta | None] = {}  # of a stream_interval: what waits for more tokens

    def open(self) -> bytes:
        """What comes before the first token."""
        if not self._generation.opens:
            return b""
        n, prompts = self._generation.n, self._generation.prompts
        return b"".join(
            self._frame(self._shape.first(self._head, place * n + index, prompt))
            for place, prompt in enumerate(prompts)
            for index in range(n)
        )

    def delta(self, delta: Delta) -> bytes:
        """What a step added to a choice; nothing where there is nothing to say."""
        place = self._places[delta.request_id]
        index = place * self._generation.n + delta.index
        new_reader = self._generation.prompts[place].tool_reader
        if self._simple and new_reader is None and delta.finish_reason is None:
            if not delta.text:
                return b""
            before, after = self._gaps.get(index) or self._gap(index, delta)
            text: str = encode_basestring(delta.text)
            return before + text.encode() + after
        if self._generation.interval > 1:
            whole = self._collected(index, delta)
            if whole is None:
                return b""
            delta = whole
        if new_reader is not None:
            return self._events(index, delta, self._readers.get(index) or self._reader(index, new_reader()))
        if not (delta.text or delta.finish_reason is not None or (self._says_tokens and delta.tokens)):
            return b""
        return self._frame(self._shape.chunk(self._head, index, delta))

    def end(self) -> bytes:
        """What comes after the last token."""
        usage = self._frame(self._shape.end(self._head, self._usage)) if self._options.include_usage else b""
        return usage + DONE

    def failed(self, error: ApiError) -> bytes:
        """The end of an answer that breaks off."""
        return frame(error.document()) + DONE

    def _frame(self, document: dict[str, Any]) -> bytes:
        if self._options.continuous_usage_stats:
            document = {"usage": self._usage.document()} | document
        elif self._options.include_usage:
            document = {"usage": None} | document
        return frame(document)

    def _gap(self, index: int, delta: Delta) -> tuple[bytes, bytes]:
        """The bytes before and after the text of a choice's chunks."""
        document = self._shape.chunk(self._head, index, replace(delta, text=GAP, tokens=()))
        before, _, after = self._frame(document).partition(json.dumps(GAP, ensure_ascii=False).encode())
        self._gaps[index] = before, after
        return before, after

    def _collected(self, index: int, delta: Delta) -> Delta | None:
        """The deltas since the last chunk as one, once they are enough; a choice's first token goes out at once."""
        if index not in self._held:
            self._held[index] = None
            return delta
        if (held := self._held[index]) is not None:
            delta = replace(delta, text=held.text + delta.text, tokens=held.tokens + delta.tokens)
        if len(delta.tokens) < self._generation.interval and delta.finish_reason is None:
            self._held[index] = delta
            return None
        self._held[index] = None
        return delta

    def _reader(self, index: int, reader: CallReader) -> CallReader:
        self._readers[index] = reader
        return reader

    def _events(self, index: int, delta: Delta, reader: CallReader) -> bytes:
        """A chunk of a choice that may call tools."""
        assert isinstance(self._shape, ChatShape)
        last = delta.finish_reason is not None
        events = reader.push(delta.text, last=last)
        if not (events or last or (self._says_tokens and delta.tokens)):
            return b""
        return self._frame(self._shape.events(self._head, index, delta, events, bool(reader.num_calls)))

"""POST /v1/responses: the shapes of answers and of their events, and the store that lets a later request go on. Pure.

A response is a chat with one choice (responses_protocol.py translates it), told in items: messages and calls. Both
the whole answer and the stream are told by one `Narrator`, so they always say the same.
"""

import json
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

from kubeformer_runtime.engine.core import Delta
from kubeformer_runtime.engine.sampler import Sampled
from kubeformer_runtime.server.chat_shape import ChatShape
from kubeformer_runtime.server.errors import ApiError
from kubeformer_runtime.server.prepare import Generation
from kubeformer_runtime.server.protocol import FunctionCall, Message, ToolCall
from kubeformer_runtime.server.responses_protocol import ResponsesRequest, ResponseToolChoice
from kubeformer_runtime.server.shapes import Usage
from kubeformer_runtime.server.tools import CallArguments, CallStart, Content, Event

MAX_STORED = 1024
MAX_STORED_BYTES = 64 << 20

Tell = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Stored:
    """A response that a later request may go on from."""

    document: dict[str, Any]
    messages: tuple[Message, ...]  # everything that was said, without instructions
    size: int


class ResponseStore:
    """The latest responses, in this process's memory: gone with it, and unknown to other replicas."""

    def __init__(self, max_items: int = MAX_STORED, max_bytes: int = MAX_STORED_BYTES) -> None:
        self._max_items, self._max_bytes, self._bytes = max_items, max_bytes, 0
        self._items: OrderedDict[str, Stored] = OrderedDict()

    def put(self, document: dict[str, Any], messages: Sequence[Message]) -> None:
        """Keep one; the oldest ones go where room is short."""
        size = len(json.dumps(document)) + sum(len(message.text) + 256 for message in messages)
        self._items[document["id"]] = Stored(document, tuple(messages), size)
        self._bytes += size
        while self._items and (len(self._items) > self._max_items or self._bytes > self._max_bytes):
            self._bytes -= self._items.popitem(last=False)[1].size

    def get(self, response_id: str, param: str | None = None) -> Stored:
        """Raises ApiError 404 where it is not there."""
        if (found := self._items.get(response_id)) is None:
            raise ApiError(
                404,
                f"There is no response {response_id} here: it was not stored, is too old, or another replica has it.",
                param,
            )
        return found

    def delete(self, response_id: str) -> None:
        """Raises ApiError 404 where it is not there."""
        self._bytes -= self.get(response_id).size
        del self._items[response_id]


class Narrator:
    """Puts items together from what the model says, and tells each event of it."""

    def __init__(self, body: ResponsesRequest, generation: Generation, tell: Tell) -> None:
        """`tell` gets an event's type and its fields."""
        self._body, self._generation, self._tell = body, generation, tell
        new_reader = generation.prompts[0].tool_reader
        self._reader = new_reader() if new_reader else None
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the item that is being written
        self._logprobs: list[dict[str, Any]] = []  # of the message that is being written
        self._untold: list[Sampled] = []  # tokens whose text is still held back

    def say(self, text: str, tokens: Sequence[Sampled], *, last: bool) -> None:
        """More of the answer."""
        if self._reader is not None:
            events: list[Event] = self._reader.push(text, last=last)
        else:
            events = [Content(text)] if text else []
        self._untold += tokens
        for event in events:
            self._take(event)
        if last and self._open is None and not self._output:
            self._begin_message()

    def finish(self, usage: Usage, reason: str | None) -> dict[str, Any]:
        """Close what is open; the whole response. `reason`: how the engine ended the choice."""
        status = {"stop": "completed", "length": "incomplete"}.get(reason or "", "failed")
        self._close("completed" if status == "completed" else "incomplete")
        return self.response(status, usage)

    def _take(self, event: Event) -> None:
        match event:
            case Content(text):
                if self._open is None or self._open["type"] != "message":
                    self._begin_message()
                assert self._open is not None
                self._open["content"][0]["text"] += text
                logprobs = self._scores()
                place = {"item_id": self._open["id"], "output_index": len(self._output), "content_index": 0}
                self._tell("response.output_text.delta", {**place, "delta": text, "logprobs": logprobs})
            case CallStart(_, call_id, name):
                item = {"type": "function_call", "id": f"fc_{secrets.token_hex(16)}", "status": "in_progress"}
                self._begin(item | {"call_id": call_id, "name": name, "arguments": ""})
            case CallArguments(_, text):
                assert self._open is not None
                self._open["arguments"] += text
                place = {"item_id": self._open["id"], "output_index": len(self._output)}
                self._tell("response.function_call_arguments.delta", {**place, "delta": text})

    def _scores(self) -> list[dict[str, Any]]:
        """Log-probabilities of the tokens since the last time, where they are wanted."""
        shape = self._generation.shape
        assert isinstance(shape, ChatShape)
        tokens, self._untold = self._untold, []
        found = shape.logprobs(tokens)
        logprobs = [] if found is None else list(found["content"])
        self._logprobs += logprobs
        return logprobs

    def _begin_message(self) -> None:
        item = {"type": "message", "id": f"msg_{secrets.token_hex(16)}", "status": "in_progress", "role": "assistant"}
        self._begin(item | {"content": []})
        assert self._open is not None
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        place = {"item_id": self._open["id"], "output_index": len(self._output), "content_index": 0}
        self._tell("response.content_part.added", {**place, "part": dict(part)})
        self._open["content"].append(part)
        self._logprobs = []

    def _begin(self, item: dict[str, Any]) -> None:
        self._close("completed")
        self._open = item
        shown = item | ({"content": []} if "content" in item else {})
        self._tell("response.output_item.added", {"output_index": len(self._output), "item": shown})

    def _close(self, status: str) -> None:
        if (item := self._open) is None:
            return
        place: dict[str, Any] = {"item_id": item["id"], "output_index": len(self._output)}
        if item["type"] == "message":
            part = item["content"][0]
            self._scores()
            part["logprobs"] = self._logprobs
            place["content_index"] = 0
            self._tell("response.output_text.done", {**place, "text": part["text"], "logprobs": self._logprobs})
            self._tell("response.content_part.done", {**place, "part": part})
        else:
            self._tell("response.function_call_arguments.done", {**place, "arguments": item["arguments"]})
        item["status"] = status
        self._tell("response.output_item.done", {"output_index": len(self._output), "item": item})
        self._output.append(item)
        self._open = None

    def response(self, status: str, usage: Usage | None) -> dict[str, Any]:
        """The response as it is now."""
        body, head = self._body, self._generation.head
        params = self._generation.requests[0].params
        choice = body.tool_choice
        text_format = body.text.format if body.text else None
        shown_format = {"type": "text"} if text_format is None else _dump(text_format)
        error = {"code": "server_error", "message": "The answer was broken off."} if status == "failed" else None
        return {
            "id": head.id,
            "object": "response",
            "created_at": head.created,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "model": head.model,
            "output": list(self._output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "service_tier": "default",
            "temperature": params.temperature,
            "text": {"format": shown_format},
            "tool_choice": _dump(choice) if isinstance(choice, ResponseToolChoice) else choice or "auto",
            "tools": [_dump(tool) for tool in body.tools],
            "top_logprobs": body.top_logprobs,
            "top_p": params.top_p,
            "truncation": body.truncation,
            "usage": None if usage is None else _usage(usage),
        }

    def messages(self) -> list[Message]:
        """What was said, as messages for a later request."""
        out: list[Message] = []
        for item in self._output:
            if item["type"] == "message":
                out.append(Message(role="assistant", content=item["content"][0]["text"]))
                continue
            call = ToolCall(id=item["call_id"], function=FunctionCall(name=item["name"], arguments=item["arguments"]))
            if out:
                out[-1] = out[-1].model_copy(update={"tool_calls": [*out[-1].tool_calls, call]})
            else:
                out.append(Message(role="assistant", tool_calls=[call]))
        return out


class ResponseFrames:
    """The events of a streamed response, numbered, as bytes."""

    def __init__(
        self,
        body: ResponsesRequest,
        generation: Generation,
        usage: Usage,
        done: Callable[[dict[str, Any], list[Message]], None],
    ) -> None:
        """`done` gets the response once it is whole."""
        self._narrator = Narrator(body, generation, self._tell)
        self._usage, self._done = usage, done
        self._number = 0
        self._out: list[bytes] = []
        self._reason: str | None = None

    def open(self) -> bytes:
        """What comes before the first token."""
        for kind in ("response.created", "response.in_progress"):
            self._tell(kind, {"response": self._narrator.response("in_progress", None)})
        return self._taken()

    def delta(self, delta: Delta) -> bytes:
        """What a step added."""
        if delta.finish_reason is not None:
            self._reason = delta.finish_reason.value
        self._narrator.say(delta.text, delta.tokens, last=delta.finish_reason is not None)
        return self._taken()

    def end(self) -> bytes:
        """What comes after the last token."""
        document = self._narrator.finish(self._usage, self._reason)
        self._done(document, self._narrator.messages())
        self._tell(f"response.{document['status']}", {"response": document})
        return self._taken()

    def failed(self, error: ApiError) -> bytes:
        """The end of an answer that breaks off."""
        document = self._narrator.response("failed", self._usage)
        self._tell(
            "response.failed",
            {"response": document | {"error": {"code": "server_error", "message": error.message}}},
        )
        return self._taken()

    def _tell(self, kind: str, fields: dict[str, Any]) -> None:
        if kind == "response.output_text.delta" and not fields["logprobs"]:  # nearly every event
            text: str = encode_basestring(fields["delta"])
            data = (
                f'{{"type":"{kind}","sequence_number":{self._number},"item_id":"{fields["item_id"]}",'
                f'"output_index":{fields["output_index"]},"content_index":0,"delta":{text},"logprobs":[]}}'
            )
        else:
            document = {"type": kind, "sequence_number": self._number, **fields}
            data = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        self._number += 1
        self._out.append(f"event: {kind}\ndata: {data}\n\n".encode())

    def _taken(self) -> bytes:
        out, self._out = b"".join(self._out), []
        return out


def _dump(model: Any) -> dict[str, Any]:
    document: dict[str, Any] = model.model_dump(by_alias=True)
    return {name: value for name, value in document.items() if value is not None or name in ("parameters", "strict")}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},  # costs nothing here
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }

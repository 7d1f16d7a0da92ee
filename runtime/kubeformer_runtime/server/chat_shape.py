"""Shapes of /v1/chat/completions, whole and as chunks of a stream: OpenAI's JSON. Pure."""

from collections.abc import Sequence
from typing import Any

from kubeformer_runtime.engine.core import Delta
from kubeformer_runtime.engine.sampler import Sampled
from kubeformer_runtime.server.shapes import Choice, DecodeToken, Head, Prompt, Usage, Wishes, prompt_logprobs
from kubeformer_runtime.server.tools import CallArguments, CallStart, Content, Event, Message


class ChatShape:
    """Shapes of /v1/chat/completions."""

    id_prefix = "chatcmpl-"

    def __init__(self, decode: DecodeToken, wishes: Wishes) -> None:
        self._decode, self.wishes = decode, wishes

    def opens(self, prompts: Sequence[Prompt]) -> bool:
        """Whether a stream opens each choice with a chunk of its own: the one with the role."""
        return True

    def whole(self, head: Head, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """An answer that is not streamed."""
        document = {
            "id": head.id,
            "object": "chat.completion",
            "created": head.created,
            "model": head.model,
            "choices": [self._choice(choice) for choice in choices],
            "usage": usage.document(),
        }
        if head.service_tier is not None:
            document["service_tier"] = head.service_tier
        if head.metadata is not None:
            document["metadata"] = head.metadata
        if self.wishes.token_ids:
            document["prompt_token_ids"] = choices[0].prompt.tokens
        if self.wishes.prompt_logprobs:
            document["prompt_logprobs"] = prompt_logprobs(choices[0], self._shown)
        return document

    def _choice(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.prompt.text + choice.text}
        reason = choice.finish_reason
        if choice.prompt.tool_reader is not None:
            said = Message()
            said.take(choice.prompt.tool_reader().push(choice.text, last=True))
            message["content"] = said.content or None
            if said.calls:
                reason = "tool_calls" if reason == "stop" else reason
                message["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                    for call in said.calls
                ]
        document = {
            "index": choice.index,
            "message": message,
            "logprobs": self.logprobs(choice.tokens),
            "finish_reason": reason,
            "stop_reason": choice.stop_reason if reason != "tool_calls" else None,
        }
        return document | self._token_ids(choice.tokens)

    def first(self, head: Head, index: int, prompt: Prompt) -> dict[str, Any]:
        """The chunk that opens a choice."""
        document = self._chunk(head, index, {"role": "assistant", "content": prompt.text}, (), None, None)
        return document | ({"prompt_token_ids": prompt.tokens} if self.wishes.token_ids else {})

    def chunk(self, head: Head, index: int, delta: Delta) -> dict[str, Any]:
        """What a step added to a choice that is all text."""
        reason = delta.finish_reason.value if delta.finish_reason else None
        return self._chunk(head, index, {"content": delta.text}, delta.tokens, reason, delta.stop_reason)

    def events(self, head: Head, index: int, delta: Delta, events: Sequence[Event], called: bool) -> dict[str, Any]:
        """The same for a choice that may call tools: what its reader made of the text; `called`: it has a call."""
        document: dict[str, Any] = {}
        calls: list[dict[str, Any]] = []
        for event in events:
            match event:
                case Content(text):
                    document["content"] = document.get("content", "") + text
                case CallStart(number, id, name):
                    function = {"name": name, "arguments": ""}
                    calls.append({"index": number, "id": id, "type": "function", "function": function})
                case CallArguments(number, text) if calls and calls[-1]["index"] == number:
                    calls[-1]["function"]["arguments"] += text
                case CallArguments(number, text):
                    calls.append({"index": number, "function": {"arguments": text}})
        if calls:
            document["tool_calls"] = calls
        reason, stop_reason = delta.finish_reason.value if delta.finish_reason else None, delta.stop_reason
        if called and reason == "stop":
            reason, stop_reason = "tool_calls", None
        return self._chunk(head, index, document, delta.tokens, reason, stop_reason)

    def end(self, head: Head, usage: Usage) -> dict[str, Any]:
        """The last chunk of a stream that asked for usage."""
        return self._frame(head, []) | {"usage": usage.document()}

    def logprobs(self, tokens: Sequence[Sampled]) -> dict[str, Any] | None:
        """Log-probabilities of the chosen tokens and their alternatives."""
        if not self.wishes.logprobs:
            return None
        content = []
        for item in tokens:
            top = [self._logprob(other.token, other.logprob) for other in item.top]
            content.append(self._logprob(item.token, item.logprob) | {"top_logprobs": top})
        return {"content": content}

    def _logprob(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self._shown(token), "logprob": logprob, "bytes": list(self._decode(token).encode())}

    def _shown(self, token: int) -> str:
        return f"token_id:{token}" if self.wishes.tokens_as_ids else self._decode(token)

    def _token_ids(self, tokens: Sequence[Sampled]) -> dict[str, Any]:
        return {"token_ids": [item.token for item in tokens]} if self.wishes.token_ids else {}

    def _chunk(
        self,
        head: Head,
        index: int,
        delta: dict[str, Any],
        tokens: Sequence[Sampled],
        reason: str | None,
        stop_reason: str | int | None,
    ) -> dict[str, Any]:
        logprobs = self.logprobs(tokens) if tokens else None
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        if stop_reason is not None:
            choice["stop_reason"] = stop_reason
        return self._frame(head, [choice | self._token_ids(tokens)])

    @staticmethod
    def _frame(head: Head, choices: list[dict[str, Any]]) -> dict[str, Any]:
        document: dict[str, Any] = {
            "id": head.id,
            "object": "chat.completion.chunk",
            "created": head.created,
            "model": head.model,
            "choices": choices,
        }
        return document if head.service_tier is None else document | {"service_tier": head.service_tier}

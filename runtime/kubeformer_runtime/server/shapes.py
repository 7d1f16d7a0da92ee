"""Answers of /v1/completions and /v1/chat/completions, whole and as chunks of a stream: OpenAI's JSON. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubeformer_runtime.engine.core import Delta
from kubeformer_runtime.engine.sampler import Sampled

DecodeToken = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    model: str


@dataclass(slots=True)
class Usage:
    """Tokens of a request, over all prompts and choices."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    def document(self) -> dict[str, Any]:
        """OpenAI's usage."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(slots=True)
class Choice:
    """One choice so far, for answers that are not streamed."""

    index: int
    text: str = ""
    tokens: list[Sampled] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def take(self, delta: Delta) -> None:
        """Add what is new."""
        self.text += delta.text
        self.tokens.extend(delta.tokens)
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason.value, delta.stop_reason


class ChatShape:
    """Shapes of /v1/chat/completions."""

    id_prefix = "chatcmpl-"

    def __init__(self, decode: DecodeToken, *, logprobs: bool) -> None:
        self._decode, self._logprobs = decode, logprobs

    def whole(self, head: Head, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """An answer that is not streamed."""
        return {
            "id": head.id,
            "object": "chat.completion",
            "created": head.created,
            "model": head.model,
            "choices": [
                {
                    "index": choice.index,
                    "message": {"role": "assistant", "content": choice.text},
                    "logprobs": self.logprobs(choice.tokens),
                    "finish_reason": choice.finish_reason,
                    "stop_reason": choice.stop_reason,
                }
                for choice in choices
            ],
            "usage": usage.document(),
        }

    def first(self, head: Head, index: int, text: str = "") -> dict[str, Any]:
        """The chunk that opens a choice."""
        return self._chunk(head, index, {"role": "assistant", "content": text}, None, None, None)

    def chunk(self, head: Head, index: int, delta: Delta) -> dict[str, Any]:
        """What a step added to a choice."""
        reason = delta.finish_reason.value if delta.finish_reason else None
        return self._chunk(head, index, {"content": delta.text}, self.logprobs(delta.tokens), reason, delta.stop_reason)

    def end(self, head: Head, usage: Usage) -> dict[str, Any]:
        """The last chunk of a stream that asked for usage."""
        return self._frame(head, []) | {"usage": usage.document()}

    def logprobs(self, tokens: Sequence[Sampled]) -> dict[str, Any] | None:
        """Log-probabilities of the chosen tokens and their alternatives."""
        if not self._logprobs:
            return None
        content = []
        for item in tokens:
            top = [self._logprob(other.token, other.logprob) for other in item.top]
            content.append(self._logprob(item.token, item.logprob) | {"top_logprobs": top})
        return {"content": content}

    def _logprob(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._decode(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _chunk(
        self,
        head: Head,
        index: int,
        delta: dict[str, str],
        logprobs: dict[str, Any] | None,
        reason: str | None,
        stop_reason: str | int | None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        if stop_reason is not None:
            choice["stop_reason"] = stop_reason
        return self._frame(head, [choice])

    @staticmethod
    def _frame(head: Head, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": head.id,
            "object": "chat.completion.chunk",
            "created": head.created,
            "model": head.model,
            "choices": choices,
        }


class CompletionShape:
    """Shapes of /v1/completions."""

    id_prefix = "cmpl-"

    def __init__(self, decode: DecodeToken, *, logprobs: bool) -> None:
        self._decode, self._logprobs = decode, logprobs
        self._offsets: dict[int, int] = {}  # of streamed choices: where the next token's text begins

    def whole(self, head: Head, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """An answer that is not streamed."""
        listed = [
            self._choice(
                choice.index,
                choice.text,
                self.logprobs(choice.tokens, 0),
                choice.finish_reason,
                choice.stop_reason,
            )
            for choice in choices
        ]
        return self._frame(head, listed) | {"usage": usage.document()}

    def first(self, head: Head, index: int, text: str = "") -> dict[str, Any]:
        """The chunk that opens a choice, where there is something to say before the first token."""
        return self._frame(head, [self._choice(index, text, None, None, None)])

    def chunk(self, head: Head, index: int, delta: Delta) -> dict[str, Any]:
        """What a step added to a choice."""
        reason = delta.finish_reason.value if delta.finish_reason else None
        offset = self._offsets.get(index, 0)
        logprobs = self.logprobs(delta.tokens, offset)
        if logprobs is not None:
            self._offsets[index] = offset + sum(len(token) for token in logprobs["tokens"])
        return self._frame(head, [self._choice(index, delta.text, logprobs, reason, delta.stop_reason)])

    def end(self, head: Head, usage: Usage) -> dict[str, Any]:
        """The last chunk of a stream that asked for usage."""
        return self._frame(head, []) | {"usage": usage.document()}

    def logprobs(self, tokens: Sequence[Sampled], offset: int) -> dict[str, Any] | None:
        """Log-probabilities; `offset` is where the first token's text begins."""
        if not self._logprobs:
            return None
        texts = [self._decode(item.token) for item in tokens]
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        top = []
        for text, item in zip(texts, tokens, strict=True):
            others: dict[str, float | None] = {self._decode(other.token): other.logprob for other in item.top}
            top.append(others | {text: item.logprob})
        return {
            "text_offset": offsets,
            "token_logprobs": [item.logprob for item in tokens],
            "tokens": texts,
            "top_logprobs": top,
        }

    @staticmethod
    def _choice(
        index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None, stop_reason: str | int | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason,
            "stop_reason": stop_reason,
        }

    @staticmethod
    def _frame(head: Head, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": head.id,
            "object": "text_completion",
            "created": head.created,
            "model": head.model,
            "choices": choices,
        }

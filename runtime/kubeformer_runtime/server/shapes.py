"""What answers consist of, and the shapes of /v1/completions, whole and as chunks of a stream: OpenAI's JSON. Pure.

A field that vLLM adds to OpenAI's comes only where the request asked for it (token ids, prompt log-probabilities),
but for `stop_reason`, which vLLM always sends. Chat has its shapes in chat_shape.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubeformer_runtime.engine.core import Delta
from kubeformer_runtime.engine.sampler import Sampled
from kubeformer_runtime.server.tools import CallReader

DecodeToken = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    model: str
    service_tier: str | None = None  # given back where the request named one
    metadata: dict[str, str] | None = None


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


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request wants to see beside the text."""

    logprobs: bool = False
    token_ids: bool = False  # ids of prompt and answer
    tokens_as_ids: bool = False  # log-probabilities call tokens token_id:N
    prompt_logprobs: bool = False
    echoed_logprobs: bool = False  # log-probabilities begin with the prompt's, as its text does


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a request, as far as answers repeat it."""

    tokens: list[int]
    text: str = ""  # comes before each answer
    tool_reader: Callable[[], CallReader] | None = None


@dataclass(slots=True)
class Choice:
    """One choice so far, for answers that are not streamed."""

    index: int
    prompt: Prompt
    text: str = ""
    tokens: list[Sampled] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[Sampled, ...] = ()  # of the prompt's tokens but the first one

    def take(self, delta: Delta) -> None:
        """Add what is new."""
        self.text += delta.text
        self.tokens.extend(delta.tokens)
        self.prompt_logprobs += delta.prompt_logprobs
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason.value, delta.stop_reason


def prompt_logprobs(choice: Choice, shown: DecodeToken) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: each token of the prompt and the likeliest ones, by id; null for the first."""
    documents: list[dict[str, Any] | None] = [None]
    for item in choice.prompt_logprobs:
        found = {other.token: (other.logprob, rank) for rank, other in enumerate(item.top, 1)}
        found.setdefault(item.token, (item.logprob or 0.0, item.rank or 0))
        documents.append(
            {
                str(token): {"logprob": logprob, "rank": rank, "decoded_token": shown(token)}
                for token, (logprob, rank) in found.items()
            }
        )
    return documents


class CompletionShape:
    """Shapes of /v1/completions."""

    id_prefix = "cmpl-"

    def __init__(self, decode: DecodeToken, wishes: Wishes) -> None:
        self._decode, self.wishes = decode, wishes
        self._offsets: dict[int, int] = {}  # of streamed choices: where the next token's text begins

    def opens(self, prompts: Sequence[Prompt]) -> bool:
        """Whether a stream opens each choice with a chunk of its own: where the prompt is repeated."""
        return self.wishes.token_ids or any(prompt.text for prompt in prompts)

    def whole(self, head: Head, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """An answer that is not streamed."""
        listed = []
        for choice in choices:
            logprobs = self._logprobs(choice) if self.wishes.logprobs else None
            text = choice.prompt.text + choice.text
            document = self._choice(choice.index, text, logprobs, choice.finish_reason, choice.stop_reason)
            if self.wishes.token_ids:
                document |= {
                    "prompt_token_ids": choice.prompt.tokens,
                    "token_ids": [item.token for item in choice.tokens],
                }
            if self.wishes.prompt_logprobs:
                document["prompt_logprobs"] = prompt_logprobs(choice, self._shown)
            listed.append(document)
        return self._frame(head, listed) | {"usage": usage.document()}

    def first(self, head: Head, index: int, prompt: Prompt) -> dict[str, Any]:
        """The chunk that opens a choice, where there is something to say before the first token."""
        document = self._choice(index, prompt.text, None, None, None)
        if self.wishes.token_ids:
            document |= {"prompt_token_ids": prompt.tokens, "token_ids": []}
        self._offsets[index] = len(prompt.text)
        return self._frame(head, [document])

    def chunk(self, head: Head, index: int, delta: Delta) -> dict[str, Any]:
        """What a step added to a choice."""
        reason = delta.finish_reason.value if delta.finish_reason else None
        logprobs = None
        if self.wishes.logprobs and delta.tokens:
            offset = self._offsets.get(index, 0)
            logprobs = self.logprobs(delta.tokens, offset)
            self._offsets[index] = offset + sum(len(self._decode(item.token)) for item in delta.tokens)
        document = self._choice(index, delta.text, logprobs, reason, delta.stop_reason)
        if self.wishes.token_ids:
            document["token_ids"] = [item.token for item in delta.tokens]
        return self._frame(head, [document])

    def end(self, head: Head, usage: Usage) -> dict[str, Any]:
        """The last chunk of a stream that asked for usage."""
        return self._frame(head, []) | {"usage": usage.document()}

    def _logprobs(self, choice: Choice) -> dict[str, Any]:
        if not self.wishes.echoed_logprobs:
            return self.logprobs(choice.tokens, len(choice.prompt.text))
        first = Sampled(choice.prompt.tokens[0])  # nothing comes before it, so it has no probability
        document = self.logprobs([first, *choice.prompt_logprobs, *choice.tokens], 0)
        document["top_logprobs"][0] = None
        return document

    def logprobs(self, tokens: Sequence[Sampled], offset: int) -> dict[str, Any]:
        """Log-probabilities; `offset` is where the first token's text begins."""
        offsets, top = [], []
        for item in tokens:
            offsets.append(offset)
            offset += len(self._decode(item.token))
            others: dict[str, float | None] = {self._shown(other.token): other.logprob for other in item.top}
            top.append(others | {self._shown(item.token): item.logprob})
        return {
            "text_offset": offsets,
            "token_logprobs": [item.logprob for item in tokens],
            "tokens": [self._shown(item.token) for item in tokens],
            "top_logprobs": top,
        }

    def _shown(self, token: int) -> str:
        return f"token_id:{token}" if self.wishes.tokens_as_ids else self._decode(token)

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

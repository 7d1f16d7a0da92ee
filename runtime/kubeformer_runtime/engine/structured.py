"""Structured output: from a JSON schema, a regex, a grammar or a list of choices to the tokens that may come next.

llguidance does the parsing. What a client sends is first checked in a process of its own (grammar_probe.py), because
a few dozen characters can ask for minutes of work or exhaust the stack; then it is compiled in a thread, once for
all requests that ask for the same. Each sequence has a copy, which follows its tokens.

Nothing here depends on the logits: the sampler asks for a mask before it chooses, and says afterwards what it chose.
"""

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from kubeformer_runtime.engine.grammar_probe import GrammarProbe, ProbeError, limits
from kubeformer_runtime.engine.sampling_params import ParameterError, StructuredOutput
from kubeformer_runtime.engine.tokenizer import EngineTokenizer

MAX_TEXT = 128 << 10  # bytes of a schema, regex, grammar, or of all choices
MAX_CHOICES = 1024
CACHED = 64  # compiled forms
MAX_WAITING = 64  # requests for something to be compiled, at once
_ANY_OBJECT = '{"type":"object"}'
# JSON's whitespace, but not without end: small models are fond of it.
_JSON_OPTIONS: dict[str, Any] = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,20}"}


class Probe(Protocol):
    """What checks grammars; see grammar_probe.py."""

    def check(self, grammar: str, seconds: float) -> str:
        """What is wrong with a grammar; "" where nothing is. Raises ProbeError where it is too much."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class StructureState:
    """Where one answer stands in its form: the sampler's `Structure`."""

    def __init__(self, matcher: LLMatcher, end_tokens: Sequence[int]) -> None:
        self._matcher = matcher
        self.end_tokens = tuple(end_tokens)

    @property
    def broken(self) -> bool:
        """Whether the form took more work than a step may; the answer cannot go on."""
        return bool(self._matcher.is_error())

    def allowed_V(self, size: int, device: torch.device) -> Tensor:
        """Bool (V,): the tokens that may come; the end alone where nothing else may, or where the form broke."""
        if not self.broken:
            bias = self._matcher.compute_logit_bias()  # a byte a token: 0 or 200
            if not self._matcher.is_error():
                allowed = torch.frombuffer(bytearray(bias), dtype=torch.uint8)[:size] > 0
                if bool(allowed.any()):
                    return allowed.to(device)
        only_end_V = torch.zeros(size, dtype=torch.bool, device=device)
        only_end_V[list(self.end_tokens)] = True
        return only_end_V

    def accept(self, token: int) -> None:
        """The token was chosen."""
        if not self._matcher.is_error() and not (self._matcher.is_stopped() and token in self.end_tokens):
            self._matcher.consume_token(token)


@dataclass(frozen=True, slots=True)
class CompiledStructure:
    """A form that is ready to be followed."""

    _matcher: LLMatcher
    _end_tokens: tuple[int, ...]

    def start(self) -> StructureState:
        """A state of its own for one sequence, at the beginning."""
        return StructureState(self._matcher.deep_copy(), self._end_tokens)


def grammar_of(form: StructuredOutput) -> str:
    """What llguidance compiles. Raises ParameterError for what is no form at all, or too large."""
    texts = (form.value,) if isinstance(form.value, str) else form.value
    if sum(len(text.encode()) for text in texts) > MAX_TEXT:
        raise _wrong(f"is larger than {MAX_TEXT >> 10} KiB; make it smaller")
    if form.kind == "choice":
        if not texts or len(texts) > MAX_CHOICES:
            raise _wrong(f"has {len(texts)} choices; give 1 to {MAX_CHOICES}")
        if "" in texts:
            raise _wrong("holds an empty choice; give texts of at least one character")
        quoted = [json.dumps(text, ensure_ascii=False) for text in texts]  # JSON's strings are Lark's
        return str(LLMatcher.grammar_from_lark(f"start: {' | '.join(quoted)}"))
    text = texts[0]
    if form.kind == "json_object":
        return str(LLMatcher.grammar_from_json_schema(_ANY_OBJECT, overrides=_JSON_OPTIONS))  # type: ignore[arg-type]
    if not text.strip():
        raise _wrong("is empty")
    if form.kind == "json":
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _wrong(f"is no JSON: {error}") from None
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise _wrong("is no JSON schema: it has to be an object")
        try:
            return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_JSON_OPTIONS))  # type: ignore[arg-type]
        except (ValueError, RecursionError) as error:
            raise _wrong(f"cannot be followed: {error}") from None
    if form.kind == "regex":
        return str(LLMatcher.grammar_from_regex(text))
    return str(LLMatcher.grammar_from_lark(text))


class StructureCompiler:
    """Compiles forms for one tokenizer. Lives in an event loop; nothing is loaded before the first form."""

    def __init__(
        self,
        tokenizer: EngineTokenizer,
        end_tokens: Collection[int],
        vocab_size: int,
        *,
        seconds: float = 10.0,
        probe: Callable[[str, int, Sequence[int]], Probe] = GrammarProbe,
    ) -> None:
        """`seconds`: what checking one form may take; `probe` makes what checks them."""
        self._tokenizer, self._end_tokens, self._vocab_size = tokenizer, tuple(sorted(end_tokens)), vocab_size
        self.seconds, self._new_probe = seconds, probe
        self._pool = ThreadPoolExecutor(1, "structures")
        self._lock = threading.Lock()
        self._cache: OrderedDict[StructuredOutput, CompiledStructure] = OrderedDict()
        self._loaded: tuple[LLTokenizer, Probe] | None = None
        self._waiting = 0

    async def compile(self, form: StructuredOutput) -> CompiledStructure:
        """The compiled form.

        Raises:
            ParameterError: it is invalid, too large or too complex, or too many others wait; the message says which.
        """
        if (known := self._known(form)) is not None:
            return known
        if self._waiting >= MAX_WAITING:
            raise _wrong("cannot be compiled now, as too many others wait for that; try again")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self.compile_now, form)
        finally:
            self._waiting -= 1

    def compile_now(self, form: StructuredOutput) -> CompiledStructure:
        """The same, in the calling thread. Raises ParameterError."""
        if (known := self._known(form)) is not None:
            return known
        grammar = grammar_of(form)
        tokenizer, probe = self._loaded or self._load()
        if form.kind not in ("json_object", "choice"):
            try:
                complaint = probe.check(grammar, self.seconds)
            except ProbeError as error:
                raise _wrong(str(error)) from None
            if complaint:
                raise _wrong(f"cannot be followed: {_first_lines(complaint)}")
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first mask is the most work; copies share what it found
        if matcher.is_error():
            raise _wrong(f"cannot be followed: {_first_lines(matcher.get_error())}")
        compiled = CompiledStructure(matcher, self._end_tokens)
        with self._lock:
            self._cache[form] = compiled
            if len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        return compiled

    def close(self) -> None:
        """End thread and process."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._loaded is not None:
            self._loaded[1].close()

    def _known(self, form: StructuredOutput) -> CompiledStructure | None:
        with self._lock:
            if form in self._cache:
                self._cache.move_to_end(form)
            return self._cache.get(form)

    def _load(self) -> tuple[LLTokenizer, Probe]:
        if not self._end_tokens:
            raise _wrong("needs an end-of-sequence token, which this model does not have")
        text = self._tokenizer.tokenizer.to_str()
        try:
            tokenizer = LLTokenizer(text, n_vocab=self._vocab_size, eos_token=list(self._end_tokens))
        except Exception as error:  # whatever it does not know
            raise _wrong(f"is not possible with this model's tokenizer: {error}") from None
        self._loaded = (tokenizer, self._new_probe(text, self._vocab_size, self._end_tokens))
        return self._loaded


def _wrong(why: str) -> ParameterError:
    return ParameterError("structured", f"The form of the answer {why}.")


def _first_lines(text: str) -> str:
    """The part of llguidance's messages that is for people."""
    lines = [line.strip() for line in text.split("<state>")[0].splitlines() if line.strip()]
    return " ".join(lines)[:400].rstrip(". ")

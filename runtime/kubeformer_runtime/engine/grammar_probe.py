"""A process that tries out grammars, so that one that takes for ever or crashes hurts nobody else.

    python -m kubeformer_runtime.engine.grammar_probe     # reads JSON lines: the tokenizer first, then grammars

For each grammar it answers one line, a JSON string: what is wrong with it, or "". Whoever waits for that kills the
process after a while; the next grammar gets a new one. It imports neither torch nor the engine.
"""

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

START_SECONDS = 120.0  # for the process to begin: seconds on a busy machine
MEMORY = 4 << 30  # bytes of address space
STEPS = 6  # tokens that are tried out


class ProbeError(Exception):
    """A grammar that is too much."""


def limits() -> LLParserLimits:
    """What a grammar may cost, wherever it is compiled."""
    return LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


class GrammarProbe:
    """The other side: starts the process when it is needed. For one thread at a time."""

    def __init__(self, tokenizer: str, vocab_size: int, end_tokens: Sequence[int]) -> None:
        """`tokenizer`: tokenizer.json as text."""
        self._hello = json.dumps([tokenizer, vocab_size, list(end_tokens)])
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, grammar: str, seconds: float) -> str:
        """What is wrong with a grammar; "" where nothing is.

        Raises:
            ProbeError: trying took longer than `seconds`, too much memory, or the whole stack.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        answer = self._ask(grammar, seconds)
        if answer is None:
            gone = self._process is None or self._process.poll() is not None
            self.close()
            raise ProbeError(
                "is too deeply nested or too large to be compiled; make it simpler"
                if gone
                else f"takes more than {seconds:g} s to be compiled; make it simpler"
            )
        return answer

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _start(self) -> None:
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if self._ask(self._hello, START_SECONDS, raw=True) is None:
            self.close()
            raise ProbeError("cannot be checked, as the checking process did not start; try again")

    def _ask(self, text: str, seconds: float, *, raw: bool = False) -> str | None:
        """The answer to one line; None where none comes in time."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        deadline, answer = time.monotonic() + seconds, b""
        try:
            process.stdin.write((text if raw else json.dumps(text)).encode() + b"\n")
            process.stdin.flush()
            while not answer.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                    return None
                piece = os.read(process.stdout.fileno(), 65536)
                if not piece:
                    process.wait()
                    return None
                answer += piece
        except OSError:
            process.wait()
            return None
        found: str = json.loads(answer)
        return found


def complaint(tokenizer: LLTokenizer, grammar: str) -> str:
    """What is wrong with a grammar, found by compiling it and following it for some tokens; "": nothing."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    for step in range(STEPS):
        if matcher.is_error():
            break
        allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]
        if not allowed:
            if not step and not matcher.is_error():
                return "there is no text that it allows"
            break
        if matcher.is_stopped():
            break
        matcher.consume_token(allowed[len(allowed) * step // STEPS])
    return str(matcher.get_error()) if matcher.is_error() else ""


def main() -> None:
    """Answer until the other side closes."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.nice(5)
    text, vocab_size, end_tokens = json.loads(sys.stdin.readline())
    tokenizer = LLTokenizer(text, n_vocab=vocab_size, eos_token=end_tokens)
    print('""', flush=True)
    for line in sys.stdin:
        print(json.dumps(complaint(tokenizer, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

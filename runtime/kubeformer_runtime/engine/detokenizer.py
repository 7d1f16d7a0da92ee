"""From tokens to text while they arrive: characters are given out whole, and stop strings never slip through.

A character may take several tokens, and a tokenizer may write a token differently at the beginning of a text. So
a token is decoded together with the ones given out just before it, and their text is cut off. Text that ends in
U+FFFD (bytes that are no character yet) and text that may be the beginning of a stop string is held back. The
pieces, put together, are the text of all tokens. Pure.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

CONTEXT = 5  # tokens of the prompt that the first ones are decoded with
PATIENCE = 16  # tokens after which bytes that still are no character are given out as they are
UNFINISHED = "\ufffd"


class Detokenizer:
    """Tokens in, new text out."""

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._given = list(prompt[-CONTEXT:])  # tokens whose text is out, kept as context
        self._given_text = decode(self._given).rstrip(UNFINISHED) if self._given else ""
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes: often a word, sometimes nothing."""
        self._pending.append(token)
        text = self._decode(self._given + self._pending)
        if text.endswith(UNFINISHED) and len(self._pending) < PATIENCE:
            return ""
        return self._give(text)

    def flush(self) -> str:
        """What was held back; the end of the text, so it will never become a character."""
        return self._give(self._decode(self._given + self._pending)) if self._pending else ""

    def _give(self, text: str) -> str:
        piece = text[len(self._given_text) :]
        if piece or len(self._pending) >= PATIENCE:  # special tokens have no text; what came before them stays
            self._given, self._pending = self._pending, []
            self._given_text = self._decode(self._given)
        return piece


class StopStrings:
    """Watches a text for the first of several strings, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str, *, last: bool = False) -> str:
        """The text that may be given out now. `last`: nothing follows. After a find, nothing is given out."""
        if self.found is not None:
            return ""
        text = self._held + piece
        self._held = ""
        if not self._stops:
            return text
        hits = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if hits:
            # The one that is complete first wins, as if characters had come one by one; then the longest.
            place, self.found = min(hits, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            return text[: place + len(self.found)] if self._include else text[:place]
        if last:
            return text
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a true beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

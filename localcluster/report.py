"""Says what is being done and how long it took, a line a step."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO


@dataclass(slots=True)
class Report:
    """Prints steps as they end. Threads may share one.

    Attributes:
        out: where the lines go.
        clock: seconds that only go forward.
    """

    out: TextIO = field(default_factory=lambda: sys.stdout)
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, text: str) -> None:
        """Prints one line. Work goes on when nobody reads it any more."""
        with self._lock, contextlib.suppress(BrokenPipeError):
            print(text, file=self.out, flush=True)

    @contextmanager
    def step(self, title: str, announce: bool = False) -> Iterator[None]:
        """Times a block and prints one line when it ends: `  1.2 s  title`, or that it failed.

        With `announce`, the title is also printed at the start: for steps of more than a few seconds.
        """
        if announce:
            self.say(f"    ...  {title}")
        start = self.clock()
        try:
            yield
        except BaseException:
            self.say(f"{self.clock() - start:5.1f} s  {title}: failed")
            raise
        self.say(f"{self.clock() - start:5.1f} s  {title}")

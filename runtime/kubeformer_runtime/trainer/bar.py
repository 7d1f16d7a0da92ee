"""The progress bar of `kubeformer-train`: plain text on standard error, one line that is written over on a terminal.

Where standard error is no terminal (a file, a pipe), it says a line a tenth of the way. No dependency.
"""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from kubeformer.contract.progress import Progress
from kubeformer_runtime.heartbeat import Heartbeat
from kubeformer_runtime.trainer.plots import History

_WIDTH = 24


def line(progress: Progress, seconds: float) -> str:
    """What the bar says of a progress, `seconds` after the first step it heard of."""
    if not progress.total_steps or progress.phase in ("Starting", "Preparing"):
        return progress.phase.lower()
    share = min(1.0, progress.step / progress.total_steps)
    filled = round(share * _WIDTH)
    parts = [f"[{'=' * filled}{' ' * (_WIDTH - filled)}]", f"{progress.step}/{progress.total_steps}"]
    parts += [
        f"{words} {value:.4g}"
        for words, name in (("loss", "train/loss"), ("validation accuracy", "validation/accuracy"))
        if (value := progress.metrics.get(name)) is not None
    ]
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if 0 < share < 1 and seconds > 0:
        left = int(seconds * (1 - share) / share)
        parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
    if progress.phase != "Training":
        parts.append(progress.phase.lower())
    return "  ".join(parts)


class Bar:
    """Draws on `stream`; `say` writes a line of its own above the bar."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._terminal = stream.isatty()
        self._drawn, self._tenth = "", -1
        self._began: tuple[float, int] | None = None

    def show(self, progress: Progress) -> None:
        """Draws a progress."""
        if progress.total_steps and progress.step and self._began is None:
            self._began = (self._clock(), progress.step)
        # The pace counts from what was resumed, not from the first step of all.
        seconds = 0.0
        if self._began is not None and progress.step > self._began[1]:
            pace = (self._clock() - self._began[0]) / (progress.step - self._began[1])
            seconds = pace * progress.step
        text = line(progress, seconds)
        if self._terminal:
            self.clear()
            self._stream.write(text)
            self._stream.flush()
            self._drawn = text
        elif progress.total_steps and (tenth := 10 * progress.step // progress.total_steps) > self._tenth:
            self._tenth = tenth
            self._stream.write(text + "\n")
            self._stream.flush()

    def clear(self) -> None:
        """Takes the bar off the screen."""
        if self._drawn:
            self._stream.write("\r" + " " * len(self._drawn) + "\r")
            self._stream.flush()
            self._drawn = ""

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Ends the bar's line."""
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()
            self._drawn = ""


class _Above(io.TextIOBase):
    """Standard output that clears the bar first."""

    def __init__(self, bar: Bar, stream: TextIO) -> None:
        self._bar, self._stream = bar, stream

    def write(self, text: str, /) -> int:
        self._bar.clear()
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def above(bar: Bar) -> Iterator[None]:
    """Meanwhile, what is printed stands above the bar."""
    with contextlib.redirect_stdout(_Above(bar, sys.stdout)):
        yield


class Listener(Heartbeat):
    """Takes the place of the launcher: hears every progress, draws it, and remembers the metrics."""

    def __init__(self, bar: Bar, history: History) -> None:
        super().__init__(None)
        self._bar, self._history = bar, history
        self.progress: Progress | None = None

    def send(self, progress: Progress) -> bool:
        """See Heartbeat."""
        self.progress = progress
        self._history.hear(progress)
        self._bar.show(progress)
        return True

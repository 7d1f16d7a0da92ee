"""Several servers loaded at once, measured in turn: repeats go round between them, so that a slow minute of the machine
hits all alike. All but the measured one stand still.
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from bench.engine.load import Measured
from bench.peers.server import Launch, PeerError, Server, start

T = TypeVar("T")
READY_SECONDS = 900.0  # vLLM compiles for minutes the first time


class Fleet:
    """Running servers by name, and what became of those that do not run."""

    def __init__(self) -> None:
        self.servers: dict[str, Server] = {}
        self.failures: dict[str, str] = {}

    def fail(self, name: str, error: BaseException) -> None:
        """A row that cannot be measured: said at once, kept for the result."""
        self.failures[name] = str(error).strip().splitlines()[0][:300] if str(error) else type(error).__name__
        print(f"  {name}: failed: {str(error).strip()[:1500]}", file=sys.stderr, flush=True)


@contextmanager
def fleet(launches: Sequence[Callable[[], Launch]], folder: Path) -> Iterator[Fleet]:
    """Start one after the other. Each is a function, because preparing a launch may install or convert something."""
    with ExitStack() as stack:
        found = Fleet()
        for make in launches:
            name = "?"
            try:
                launch = make()
                name = launch.name
                server = start(launch, folder)
                stack.callback(server.end)
                server.wait_ready(READY_SECONDS)
            except PeerError as error:
                found.fail(name, error)
                continue
            print(f"  {name}: ready after {server.ready_seconds:.1f} s", flush=True)
            server.rest()
            found.servers[name] = server
        yield found


def rounds(found: Fleet, names: Sequence[str], repeats: int, job: Callable[[Server, int], T]) -> dict[str, list[T]]:
    """`job(server, repeat)` for every server in every round, the order turned round every other time."""
    results: dict[str, list[T]] = {name: [] for name in names if name in found.servers}
    for repeat in range(repeats):
        order = list(results) if repeat % 2 == 0 else list(reversed(results))
        for name in order:
            server = found.servers[name]
            server.wake()
            try:
                results[name].append(job(server, repeat))
            except Exception as error:  # a peer may fail in any way; the others are measured all the same
                found.fail(name, error)
                del results[name]
            finally:
                server.rest()
    return results


def figures(runs: Sequence[Measured]) -> dict[str, object]:
    """Medians of the repeats, in a reader's units, and how far the rates were apart."""

    def median(field: str, scale: float = 1.0, digits: int = 1) -> float:
        return round(scale * statistics.median(float(getattr(run, field)) for run in runs), digits)

    rates = [run.tokens_per_second for run in runs]
    return {
        "tokensPerSecond": median("tokens_per_second"),
        "decodePerSecond": median("decode_per_second"),
        "firstTokenMs": median("first_p50", 1e3),
        "firstTokenP99Ms": median("first_p99", 1e3),
        "gapP50Ms": median("gap_p50", 1e3, 2),
        "gapP99Ms": median("gap_p99", 1e3, 2),
        "repeats": len(runs),
        "spreadPercent": round(100 * (max(rates) - min(rates)) / statistics.median(rates), 1),
    }


COLUMNS = {
    "tokensPerSecond": "tok/s",
    "decodePerSecond": "decode/s",
    "firstTokenMs": "TTFT ms",
    "gapP50Ms": "gap p50",
    "gapP99Ms": "gap p99",
    "spreadPercent": "spread %",
}


def table(title: str, rows: Mapping[str, Mapping[str, object]], columns: Mapping[str, str] = COLUMNS) -> str:
    """Markdown, readable in a terminal too."""
    width = max([len(name) for name in rows] + [6])
    lines = [
        f"\n**{title}**\n",
        f"| {'engine':<{width}} | " + " | ".join(f"{head:>9}" for head in columns.values()) + " |",
    ]
    lines.append(f"|{'-' * (width + 2)}|" + "|".join(["-" * 10 + ":"] * len(columns)) + "|")
    for name, row in rows.items():
        lines.append(f"| {name:<{width}} | " + " | ".join(f"{row.get(key, '-')!s:>9}" for key in columns) + " |")
    return "\n".join(lines)

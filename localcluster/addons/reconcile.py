"""A loop that keeps something in step with the API server: it looks at everything, again after each change.

Watches only ring; what is done follows from a fresh list each time, so a lost event costs a pause, never correctness.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence

from localcluster.kube import Api, ApiError

SETTLE_PAUSE = 0.05
LONGEST_REST = 5.0
LONGEST_SILENCE = 60.0
"""Seconds after which everything is looked at although no watch rang."""


def tell(text: str) -> None:
    """Writes one line to the log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def ring(api: Api, path: str, bell: threading.Event) -> None:
    """Watches a list for ever and sets the event at each change, and each time a watch begins anew."""
    while True:
        try:
            version = api.get(f"{path}?limit=1")["metadata"]["resourceVersion"]
            bell.set()
            for event in api.watch(path, version):
                if event.get("type") == "ERROR":
                    break
                if event.get("type") != "BOOKMARK":
                    bell.set()
            time.sleep(0.2)
        except (OSError, ValueError, ApiError):
            time.sleep(1.0)


def run(api: Api, paths: Sequence[str], look: Callable[[Api], None], longest: float = LONGEST_SILENCE) -> None:
    """Calls `look` at the start, after changes below the paths and after `longest` silent seconds. Never returns."""
    bell = threading.Event()
    bell.set()
    for path in paths:
        threading.Thread(target=ring, args=(api, path, bell), daemon=True).start()
    pause = 0.5
    while True:
        bell.wait(longest)
        # Changes come in bursts; a short pause makes one look of them.
        time.sleep(SETTLE_PAUSE)
        bell.clear()
        start = time.monotonic()
        try:
            look(api)
            pause = 0.5
            # With thousands of pods a look is dear; it never takes more than a fifth of a core.
            time.sleep(min(LONGEST_REST, 4 * (time.monotonic() - start)))
        except (OSError, ApiError) as error:
            tell(f"will look again in {pause:.1f} s: {error}")
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
            bell.set()
        sys.stdout.flush()

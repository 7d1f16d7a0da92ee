"""Starts again what died: `python -m localcluster.supervisor CLUSTER RECORDS LOGS`, itself a process of the cluster.

It looks at the records twice a second. A process that dies soon after its start is given a growing pause, 4 s at most:
during an outage of etcd the API server dies again and again, and should be back soon after etcd.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from localcluster.processes import Processes, reap

PERIOD = 0.5
LONGEST_PAUSE = 4.0
QUICK_DEATH = 10.0


def pause_after(deaths: int) -> float:
    """Seconds to wait before the next start, after so many quick deaths in a row."""
    return 0.0 if deaths <= 1 else min(LONGEST_PAUSE, 0.5 * 2.0 ** (deaths - 2))


def supervise(processes: Processes) -> None:
    """Runs until it is ended."""
    started: dict[str, float] = {}
    deaths: dict[str, int] = {}
    not_before: dict[str, float] = {}
    while True:
        reap()
        now = time.monotonic()
        for name in processes.names():
            record = processes.record(name)
            if record is None or not record.wanted or processes.alive(name):
                continue
            if name not in not_before:
                quick = now - started.get(name, -QUICK_DEATH) < QUICK_DEATH
                deaths[name] = deaths.get(name, 0) + 1 if quick else 1
                not_before[name] = now + pause_after(deaths[name])
            if now >= not_before[name]:
                del not_before[name]
                started[name] = now
                try:
                    if processes.revive(name):
                        print(f"{time.strftime('%H:%M:%S')} started {name} again", flush=True)
                except OSError as error:
                    print(f"{time.strftime('%H:%M:%S')} could not start {name}: {error}", flush=True)
        time.sleep(PERIOD)


if __name__ == "__main__":
    supervise(Processes(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])))

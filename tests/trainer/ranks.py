"""Runs several ranks of a job as processes of their own: `python -m tests.trainer.ranks PLAN.json`.

PLAN.json is a list of runs, one after the other, each {"settings": PATH, "ranks": N, "stopAtStep": {"1": 5},
"dieAtStep": {"1": 5}}. The last line printed is a list with each run's exit codes by rank. Ranks are forked from
one process that has imported torch and computed nothing yet, which saves seconds a rank.
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from kubeformer.contract.job import JobSettings
from tests.unit.trainer.builders import train


def rank(run: dict[str, Any], number: int, port: int) -> int:
    """One rank, as the launcher and torchrun would start it."""
    os.environ |= {
        "RANK": str(number),
        "WORLD_SIZE": str(run["ranks"]),
        "LOCAL_RANK": str(number),
        "LOCAL_WORLD_SIZE": str(run["ranks"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    settings = JobSettings.model_validate_json(Path(run["settings"]).read_text())
    code, _ = train(
        settings,
        stop_at_step=run.get("stopAtStep", {}).get(str(number)),
        die_at_step=run.get("dieAtStep", {}).get(str(number)),
        environment=os.environ,
    )
    return int(code)


def start(run: dict[str, Any], number: int, port: int) -> int:
    """Forks a rank and returns its process id."""
    if (child := os.fork()) != 0:
        return child
    code = 1
    try:
        code = rank(run, number, port)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Runs the plan."""
    codes = []
    for run in json.loads(Path(sys.argv[1]).read_text()):
        port = free_port()
        children = [start(run, number, port) for number in range(run["ranks"])]
        codes.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    print(json.dumps(codes))


if __name__ == "__main__":
    main()

"""The launcher: PID 1 of every worker. `python -m kubeformer_runtime.launcher` starts and supervises the trainer.

Everything comes from the environment (settings file, torchrun's PET_* variables, the Job's index); the flags
are for tests and for other trainers: arguments after `--` go to Python, or to torchrun, in place of
`-m kubeformer_runtime.trainer` (for a custom task, `-m kubeformer_runtime.launcher.custom`). docs/launcher.md tells
the whole story.
"""

import argparse
import json
import os
import secrets
import shlex
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kubeformer_runtime.launcher import constants
from kubeformer_runtime.launcher.group import Coordinator, Order, Report
from kubeformer_runtime.launcher.ranks import Plan, become_subreaper
from kubeformer_runtime.launcher.record import Record, termination_message
from kubeformer_runtime.launcher.supervisor import Limits, Supervisor
from kubeformer_runtime.launcher.web import GroupLink, ProgressServer

_TRAINER, _CUSTOM = "kubeformer_runtime.trainer", "kubeformer_runtime.launcher.custom"
_FAREWELL_SECONDS = 30.0  # how long worker 0 stays so that the others hear that the job is over


def log(text: str) -> None:
    """One line on standard error, beside the trainer's own."""
    print(f"launcher: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a worker; its exit code."""
    options = _parse(arguments)
    termination_path = Path(options.termination_log)
    try:
        settings = _settings(Path(environment.get(constants.ENV_SETTINGS, constants.SETTINGS_PATH)))
        recovery = settings.get("recovery", {})
        custom = settings.get("task", {}).get("kind") == "Custom"
        limits = Limits(
            int(recovery.get("maxRestarts", 10)), float(recovery.get("hangTimeoutSeconds", 600)), may_be_silent=custom
        )
        options.trainer = options.trainer or ["-m", _CUSTOM if custom else _TRAINER]
        plan = Plan.from_environment(environment, options.trainer, options.torchrun)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return _refuse(
            f"{type(error).__name__}: {error}" if isinstance(error, TypeError) else str(error), termination_path
        )
    return _supervise(plan, limits, str(settings.get("uid", "")), options, environment, termination_path)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kubeformer_runtime.launcher", description=__doc__.partition("\n")[0])
    parser.add_argument("--listen", default=f"[::]:{constants.PORT_PROGRESS}", help="ADDRESS:PORT of /progress")
    parser.add_argument("--group-port", type=int, default=constants.PORT_PROGRESS, help="that of worker 0")
    parser.add_argument(
        "--termination-log", default=constants.TERMINATION_MESSAGE_PATH, help="file for the last Progress"
    )
    parser.add_argument("--torchrun", type=shlex.split, default=None, help="command in place of torchrun")
    parser.add_argument("trainer", nargs="*", help="after --: what runs in place of -m kubeformer_runtime.trainer")
    return parser.parse_args(arguments)


def _settings(path: Path) -> dict[str, Any]:
    settings = json.loads(path.read_text())
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no JSON object")
    return settings


def _refuse(message: str, termination_path: Path) -> int:
    log(message)
    record = Record(time.time())
    record.set("Failed", {"reason": constants.REASON_SETTINGS_INVALID, "message": message})
    try:
        termination_path.write_bytes(termination_message(record.progress()))
    except OSError as error:
        log(f"cannot write the termination message: {error}")
    return constants.INVALID


def _socket_path(environment: Mapping[str, str]) -> Path:
    if environment.get(constants.ENV_SOCKET):
        return Path(environment[constants.ENV_SOCKET])
    scratch = Path(constants.SCRATCH_DIRECTORY)
    return Path(scratch if os.access(scratch, os.W_OK) else tempfile.mkdtemp(prefix="kubeformer-"), "launcher.sock")


def _supervise(
    plan: Plan,
    limits: Limits,
    uid: str,
    options: argparse.Namespace,
    environment: Mapping[str, str],
    termination_path: Path,
) -> int:
    become_subreaper()
    hear, ask, unreachable_seconds, farewell = _group(plan, limits, uid, options.group_port)
    supervisor = Supervisor(
        plan=plan,
        limits=limits,
        run_id=uid or "local",
        boot=secrets.token_hex(8),
        socket_path=_socket_path(environment),
        termination_path=termination_path,
        ask=ask,
        unreachable_seconds=unreachable_seconds,
        log=log,
    )
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    supervisor.wake_on(reading)
    signal.signal(signal.SIGTERM, supervisor.terminate)
    signal.signal(signal.SIGINT, supervisor.terminate)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes the loop
    address, _, port = options.listen.rpartition(":")
    server = ProgressServer((address.strip("[]"), int(port)), supervisor.board, uid, hear)
    server.start()
    log(f"worker {plan.node} of {plan.nodes}, {plan.processes} rank(s) each; /progress on {options.listen}")
    try:
        code = supervisor.run()
        farewell()
    finally:
        server.shutdown()
        server.server_close()
    log(f"exit code {code}")
    return code


Hear = Callable[[Report], Order]
Ask = Callable[[Report], Order | None]


def _group(
    plan: Plan, limits: Limits, uid: str, port: int
) -> tuple[Hear | None, Ask, Callable[[], float], Callable[[], None]]:
    """Worker 0 holds the coordinator, the others have a link to it: (hear, ask, unreachable seconds, farewell)."""
    if plan.node > 0:
        link = GroupLink(plan.master_address, port, uid)
        return None, link.ask, lambda: time.monotonic() - link.heard, link.close
    coordinator, lock = Coordinator(plan.nodes, limits.max_restarts), threading.Lock()

    def hear(report: Report) -> Order:
        with lock:
            return coordinator.hear(report, time.monotonic())

    def ask(report: Report) -> Order | None:
        # Ranks everywhere will look this name up: worker 0 begins nothing before it can itself.
        if report.attempt == 0 and plan.nodes > 1 and not _resolves(plan.master_address):
            return None
        return hear(report)

    def farewell() -> None:
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while coordinator.ended and not coordinator.all_told and time.monotonic() < deadline:
            time.sleep(0.05)

    return hear, ask, lambda: 0.0, farewell


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))

"""Peers are installed once, outside the repository: CACHE/peers/NAME-VERSION.

An installation that was interrupted lacks the file `complete` and is begun anew. What the installers say goes to
install.log; here a line every few seconds says that it goes on.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from examples.smollm2 import cache

PROGRESS_SECONDS = 5.0  # how often a running installer is heard of


def peers() -> Path:
    """Where all peers lie."""
    return cache() / "peers"


def ensure(name: str, build: Callable[[Path], None], needed_gigabytes: float) -> Path:
    """The directory of a peer, built by `build(directory)` if it is not there.

    Raises SystemExit where the disk is too full or the build fails.
    """
    directory = peers() / name
    if (directory / "complete").is_file():
        return directory
    peers().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(peers()).free / 2**30
    if free < needed_gigabytes:
        raise SystemExit(f"{name} needs {needed_gigabytes:g} GiB at {peers()}, {free:.1f} are free; make room first")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    print(f"{name}: installing into the cache, once", flush=True)
    begin = time.monotonic()
    build(directory)
    (directory / "complete").write_text(f"{time.monotonic() - begin:.0f} s\n")
    print(f"{name}: installed in {time.monotonic() - begin:.0f} s", flush=True)
    return directory


def shown(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a command, its output into a log, its latest line shown now and then. Raises SystemExit if it fails."""
    begin = last = time.monotonic()
    with log.open("a") as file:
        print("$", *command, file=file, flush=True)
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                if time.monotonic() - last >= PROGRESS_SECONDS:
                    last = time.monotonic()
                    print(f"  {last - begin:5.0f} s  {line.strip()[:100]}", flush=True)
            code = process.wait()
        finally:
            process.kill()
    if code:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise SystemExit(f"{Path(command[0]).name} failed with exit code {code}; see {log}\n{tail}")


def uv() -> str:
    """The uv that `make setup` keeps in the cache, or one on PATH."""
    for candidate in sorted(cache().glob("uv-*/bin/uv"), reverse=True):
        return str(candidate)
    if found := shutil.which("uv"):
        return found
    raise SystemExit("uv is needed to install the peers; `make setup` brings it")


def pip() -> list[str]:
    """A pip that can download a source archive (uv cannot)."""
    for python in [*sorted(map(str, cache().glob("uv-*/bin/python")), reverse=True), sys.executable]:
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
            return [python, "-m", "pip"]
    raise SystemExit("pip is needed to install llama.cpp; `make setup` brings one")


def venv(directory: Path, python: str, *requirement_lists: Sequence[str]) -> None:
    """A virtual environment with uv: each list of arguments is one `uv pip install`."""
    log = directory / "install.log"
    shown([uv(), "venv", "--quiet", "--python", python, str(directory / "venv")], log)
    for arguments in requirement_lists:
        # Hard links out of uv's cache: PyTorch lies on the disk once for all environments.
        environment = {"VIRTUAL_ENV": str(directory / "venv"), "UV_LINK_MODE": "hardlink"}
        shown([uv(), "pip", "install", *arguments], log, environment)

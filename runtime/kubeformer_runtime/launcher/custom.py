"""A custom task, `python -m kubeformer_runtime.launcher.custom`: gets code and packages, then becomes the command.

The launcher (or torchrun, once a rank) starts it in place of the trainer. The first rank of a worker installs into
scratch and the others wait; then each process turns into the command (execve), so signals, exit codes and torchrun's
variables reach it unchanged. The command finds in its environment: KUBEFORMER_DATA (paths of the rows, with `:`
between them), KUBEFORMER_MODEL (weights to go on from), KUBEFORMER_CHECKPOINTS and KUBEFORMER_OUTPUT (folders to write
to). It exits with 0 when it is done, and with 78 where starting it again would not help. Standard library only.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kubeformer_runtime.launcher import constants
from kubeformer_runtime.launcher.copy import copy

_WAIT_SECONDS = 0.2


class Refused(Exception):
    """The task cannot work as it is written."""


def environment(settings: Mapping[str, Any], base: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The command's environment."""
    data, output = settings.get("data") or {}, settings.get("output") or {}
    places = [data["source"]] if data.get("source") else [source["location"] for source in data.get("sources") or ()]
    model = (settings.get("model") or {}).get("base") or {}
    found = {
        "KUBEFORMER_DATA": os.pathsep.join(place["path"] for place in places),
        "KUBEFORMER_MODEL": model.get("path", ""),
        "KUBEFORMER_CHECKPOINTS": settings["checkpoint"]["directory"],
        "KUBEFORMER_OUTPUT": output["location"]["path"],
        "PYTHONPATH": os.pathsep.join(
            part
            for part in (*(str(folder / part) for part in ("packages", "code", "helpers")), base.get("PYTHONPATH", ""))
            if part
        ),
    }
    return {**base, **{name: value for name, value in found.items() if value}}


def prepare(task: Mapping[str, Any], folder: Path) -> None:
    """Code into folder/code and packages into folder/packages. Raises Refused, CalledProcessError or OSError."""
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier start left half done
    code, git = folder / "code", task.get("git")
    folder.mkdir(parents=True)
    copy(folder / "helpers")  # the command's Python need not be this one
    if git:
        _call(["git", "clone", "--quiet", "--", git["url"], str(code)])
        if git.get("revision"):
            _call(["git", "-C", str(code), "checkout", "--quiet", git["revision"]])
    code.mkdir(exist_ok=True)
    if task.get("code"):
        source = Path(task["code"]["path"])
        if not source.exists():
            raise Refused(f"spec.task.custom.code: nothing is at {task['code']['uri']}")
        if source.is_dir():
            shutil.copytree(source, code, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, code / source.name)
    if task.get("packages"):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"]
        _call([*pip, "--target", str(folder / "packages"), "--", *task["packages"]])


def _call(command: Sequence[str]) -> None:
    print("custom task: " + " ".join(command), file=sys.stderr, flush=True)
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise Refused(f"the image has no {command[0]}; use one that has it") from None


def _say(environment: Mapping[str, str], **progress: object) -> None:
    """One heartbeat; lost where nobody listens."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(environment[constants.ENV_SOCKET])
            connection.sendall(json.dumps({"rank": int(environment.get("RANK", "0")), **progress}).encode() + b"\n")
    except (OSError, KeyError):
        pass


def main(environ: Mapping[str, str]) -> int:
    """Becomes the command, or returns the exit code of why it cannot."""
    settings = json.loads(Path(environ.get(constants.ENV_SETTINGS, constants.SETTINGS_PATH)).read_text("utf-8"))
    task = settings["task"]
    scratch = Path(environ.get(constants.ENV_SOCKET) or constants.SCRATCH_DIRECTORY + "/socket").parent
    folder, marker = scratch / "custom", scratch / "custom.ready"
    _say(environ, phase="Preparing", totalSteps=task.get("totalSteps"))
    try:
        if environ.get("LOCAL_RANK", "0") == "0" and not marker.exists():
            prepare(task, folder)
            marker.touch()
        while not marker.exists():
            time.sleep(_WAIT_SECONDS)
        os.chdir(folder / "code")
        command = task["command"]
        variables = environment(settings, environ, folder)
        print("custom task: " + " ".join(command), file=sys.stderr, flush=True)
        if shutil.which(command[0], path=variables.get("PATH")) is None:
            raise Refused(f"spec.task.custom.command: the image has no program {command[0]!r}")
        os.execvpe(command[0], command, variables)
    except Refused as refused:
        failure = {"reason": constants.REASON_SETTINGS_INVALID, "message": str(refused)}
        _say(environ, phase="Failed", failure=failure)
        return constants.INVALID
    except (subprocess.CalledProcessError, OSError) as error:  # a network that is down may be up next time
        print(f"custom task: {error}", file=sys.stderr, flush=True)
        return constants.FAULT


if __name__ == "__main__":
    sys.exit(main(os.environ))

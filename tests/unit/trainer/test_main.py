"""The process itself: settings from a file, beats over a socket, a real SIGTERM, exit codes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from kubeformer.contract.progress import Progress
from tests.unit.trainer.builders import checkpoints, job

DEADLINE_SECONDS = 120  # far more than it takes, also on a busy machine


def start(settings: Path, launcher: Path | None = None) -> subprocess.Popen[str]:
    """`python -m kubeformer_runtime.trainer`, as torchrun starts it."""
    environment = {**os.environ, "KUBEFORMER_SETTINGS": str(settings), "LOCAL_WORLD_SIZE": str(os.cpu_count())}
    if launcher is not None:
        environment["KUBEFORMER_SOCKET"] = str(launcher)
    command = [sys.executable, "-m", "kubeformer_runtime.trainer"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_sigterm_ends_a_run_with_143_and_a_checkpoint(tmp_path: Path) -> None:
    settings = job(tmp_path, epochs=100_000)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.settimeout(DEADLINE_SECONDS)
        process = start(tmp_path / "settings.json", tmp_path / "s")
        connection, _ = listener.accept()
        connection.settimeout(DEADLINE_SECONDS)
        last = Progress()
        with connection, connection.makefile() as lines:
            for line in lines:
                last = Progress.model_validate_json(line)
                if last.phase == "Training" and last.step > 0:
                    process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 143, process.stdout and process.stdout.read()
    assert last.phase == "Stopped"
    assert last.checkpoint is not None
    assert last.checkpoint.path == str(checkpoints(settings)[-1])


def test_settings_that_make_no_sense_end_it_with_78(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"name": "job", "unknown": 1}')
    process = start(tmp_path / "settings.json")
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 78
    assert "unknown" in output

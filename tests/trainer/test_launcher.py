"""The launcher as a process: what it starts, hears, restarts, forwards and says at its end."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeformer.contract.progress import Progress
from tests.unit.launcher.builders import Site, Worker, eventually


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[list[Site]]:
    made: list[Site] = []
    yield made
    for site in made:
        site.close()


def site(sites: list[Site], directory: Path, trainer: str, **arguments: object) -> Site:
    sites.append(Site(directory, trainer, **arguments))  # type: ignore[arg-type]
    return sites[-1]


def alive(directory: Path) -> list[str]:
    """Command lines of processes that mention the directory, launchers aside."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if str(directory) in line and "kubeformer_runtime.launcher" not in line:
                found.append(line)
    return found


def test_a_worker_whose_trainer_succeeds_ends_with_0(sites: list[Site], tmp_path: Path) -> None:
    worker = site(sites, tmp_path, "beat(step=3, totalSteps=3, metrics={'train/loss': 0.5})").start()
    assert worker.wait() == 0
    message = Progress.model_validate(worker.termination_message())
    assert (message.phase, message.step, message.metrics) == ("Succeeded", 3, {"train/loss": 0.5})


def test_progress_metrics_and_health_are_served_while_it_trains(sites: list[Site], tmp_path: Path) -> None:
    home = site(sites, tmp_path, "beat(step=7, metrics={'train/loss': 0.25})\nuntil('done')")
    worker = home.start()
    eventually(lambda: worker.progress().get("phase") == "Training", "a heartbeat arrives")
    progress = Progress.model_validate(worker.progress())
    assert progress.attempt == 1
    assert progress.heartbeat_time is not None
    assert 'kubeformer_worker_phase{phase="Training"} 1' in worker.get("/metrics")
    assert worker.get("/health") == "ok\n"
    home.mark("done")
    assert worker.wait() == 0


def test_before_the_first_heartbeat_the_phase_is_starting(sites: list[Site], tmp_path: Path) -> None:
    home = site(sites, tmp_path, "", nodes=2)
    worker = home.start(0)  # worker 1 never comes
    eventually(worker.progress, "/progress answers")
    assert Progress.model_validate(worker.progress()).phase == "Starting"


def test_a_fault_is_restarted_in_place_and_counted(sites: list[Site], tmp_path: Path) -> None:
    worker = site(sites, tmp_path, "if attempt < 3: os._exit(1)\nbeat(step=attempt)").start()
    assert worker.wait() == 0
    message = worker.termination_message()
    assert (message["attempt"], message["restarts"], message["step"]) == (3, 2, 3)


def test_a_rank_that_dies_of_a_signal_is_a_fault(sites: list[Site], tmp_path: Path) -> None:
    worker = site(sites, tmp_path, "if attempt == 1: os.kill(os.getpid(), signal.SIGKILL)\n").start()
    assert worker.wait() == 0
    assert worker.termination_message()["restarts"] == 1


def test_faults_beyond_max_restarts_end_the_worker(sites: list[Site], tmp_path: Path) -> None:
    settings = {"uid": "u1", "recovery": {"maxRestarts": 1}}
    worker = site(sites, tmp_path, "sys.exit(9)", settings=settings).start()
    assert worker.wait() == 1
    failure = Progress.model_validate(worker.termination_message()).failure
    assert failure is not None
    assert failure.reason == "RestartsExhausted"
    assert "exit code 9" in failure.message


def test_invalid_settings_of_the_trainer_are_never_restarted(sites: list[Site], tmp_path: Path) -> None:
    trainer = "beat('Failed', failure={'reason': 'DataNotFound', 'message': 'no such file'})\nsys.exit(78)"
    for processes in (1, 2):  # torchrun hides the exit code: the heartbeat tells
        directory = tmp_path / str(processes)
        directory.mkdir()
        worker = site(sites, directory, trainer, processes=processes).start()
        assert worker.wait() == 78
        message = Progress.model_validate(worker.termination_message())
        assert message.failure is not None
        assert (message.phase, message.failure.reason, message.restarts) == ("Failed", "DataNotFound", 0)


def test_a_silent_rank_is_killed_with_its_stacks_dumped_and_started_again(sites: list[Site], tmp_path: Path) -> None:
    trainer = """
import faulthandler
faulthandler.register(signal.SIGUSR1, file=open(here / "stacks", "a"))
def stuck():
    while True: time.sleep(60)
if attempt == 1: stuck()
"""
    settings = {"uid": "u1", "recovery": {"maxRestarts": 3, "hangTimeoutSeconds": 1}}
    worker = site(sites, tmp_path, trainer, settings=settings).start()
    assert worker.wait() == 0
    assert worker.termination_message()["restarts"] == 1
    assert "in stuck" in (tmp_path / "stacks").read_text()


def test_sigterm_lets_every_rank_write_its_checkpoint(sites: list[Site], tmp_path: Path) -> None:
    trainer = """
def stop(*_):
    beat("Checkpointing"); time.sleep(0.3); mark(f"checkpoint-{rank}")
    beat("Stopped", step=5); os._exit(143)
signal.signal(signal.SIGTERM, stop)
mark(f"ready-{rank}")
while True: time.sleep(0.05)
"""
    home = site(sites, tmp_path, trainer, processes=2)
    worker = home.start()
    eventually(lambda: home.has("ready-0", "ready-1"), "both ranks train")
    worker.stop()
    assert worker.wait() == 143
    assert home.has("checkpoint-0", "checkpoint-1")
    assert alive(tmp_path) == []
    assert worker.termination_message()["phase"] == "Stopped"


def test_a_second_sigterm_does_not_wait_any_longer(sites: list[Site], tmp_path: Path) -> None:
    trainer = "signal.signal(signal.SIGTERM, lambda *_: mark('heard'))\nbeat(step=1)\nwhile True: time.sleep(0.05)"
    home = site(sites, tmp_path, trainer)
    worker = home.start()
    eventually(lambda: worker.progress().get("step") == 1, "the rank trains")
    worker.stop()
    eventually(lambda: home.has("heard"), "the rank ignores SIGTERM")
    worker.stop()
    assert worker.wait() == 143


def test_a_worker_that_waits_for_others_stops_at_once(sites: list[Site], tmp_path: Path) -> None:
    worker = site(sites, tmp_path, "", nodes=2).start(0)
    eventually(worker.progress, "/progress answers")
    worker.stop()
    assert worker.wait() == 143


def test_nothing_of_the_ranks_outlives_the_launcher(sites: list[Site], tmp_path: Path) -> None:
    # A grandchild in a session of its own, whose parent is gone: an orphan that only a subreaper finds.
    trainer = """
import subprocess
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(here)], start_new_session=True)
"""
    worker = site(sites, tmp_path, trainer).start()
    assert worker.wait() == 0
    assert alive(tmp_path) == []


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"PET_NNODES": "two"}, "PET_NNODES is 'two'"),
        ({"JOB_COMPLETION_INDEX": "5"}, "PET_NODE_RANK is 5, but PET_NNODES is 1"),
    ],
)
def test_an_impossible_environment_is_invalid(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    from kubeformer_runtime.launcher.__main__ import main

    (tmp_path / "settings.json").write_text(json.dumps({"uid": "u"}))
    environment = {"KUBEFORMER_SETTINGS": str(tmp_path / "settings.json"), **variables}
    assert main([f"--termination-log={tmp_path / 't'}"], environment) == 78
    failure = json.loads((tmp_path / "t").read_text())["failure"]
    assert failure["reason"] == "SettingsInvalid"
    assert says in failure["message"]


def test_missing_settings_are_invalid(tmp_path: Path) -> None:
    from kubeformer_runtime.launcher.__main__ import main

    environment = {"KUBEFORMER_SETTINGS": str(tmp_path / "none.json")}
    assert main([f"--termination-log={tmp_path / 't'}"], environment) == 78
    assert "none.json" in json.loads((tmp_path / "t").read_text())["failure"]["message"]


class TestTwoWorkers:
    """Two launchers on loopback, each with a rank."""

    def started(self, sites: list[Site], directory: Path, trainer: str) -> tuple[Site, Worker, Worker]:
        home = site(sites, directory, trainer, nodes=2)
        first, second = home.start_all()
        return home, first, second

    def test_both_end_when_all_ranks_have_succeeded(self, sites: list[Site], tmp_path: Path) -> None:
        _home, first, second = self.started(sites, tmp_path, "mark(f'ran-{rank}')")
        assert (first.wait(), second.wait()) == (0, 0)
        assert (tmp_path / "ran-0").read_text() == (tmp_path / "ran-1").read_text() == "u1-1"

    def test_a_fault_of_one_restarts_both_with_a_common_run(self, sites: list[Site], tmp_path: Path) -> None:
        trainer = """
mark(f"run-{rank}-{attempt}")
if attempt == 1: (sys.exit(1) if rank == 1 else until("never"))
"""
        _home, first, second = self.started(sites, tmp_path, trainer)
        assert (first.wait(), second.wait()) == (0, 0)
        assert (tmp_path / "run-0-2").read_text() == (tmp_path / "run-1-2").read_text() == "u1-2"
        assert first.termination_message()["restarts"] == second.termination_message()["restarts"] == 1

    @pytest.mark.parametrize("lost", [0, 1])
    def test_a_lost_worker_is_replaced_and_both_go_on_together(
        self, sites: list[Site], tmp_path: Path, lost: int
    ) -> None:
        home, *workers = self.started(sites, tmp_path, "mark(f'run-{rank}-' + os.environ['RUN'])\nuntil('done')")
        eventually(lambda: home.has("run-0-u1-1", "run-1-u1-1"), "both ranks run")
        workers[lost].process.kill()  # a node is gone: no last words
        workers[lost].process.wait()
        workers[lost] = home.start(lost)
        eventually(lambda: home.has("run-0-u1-2", "run-1-u1-2"), "both ranks run again, in the same run")
        home.mark("done")
        assert [worker.wait() for worker in workers] == [0, 0]

    def test_a_voluntary_stop_of_one_is_no_fault_of_the_other(self, sites: list[Site], tmp_path: Path) -> None:
        # As the trainer does: ranks agree to stop, so all of them write the checkpoint and end with 143.
        trainer = """
mark(f"run-{rank}-" + os.environ["RUN"])
signal.signal(signal.SIGTERM, lambda *_: mark("stop"))
while not (here / "stop").exists() and not (here / "done").exists(): beat(); time.sleep(0.02)
if not (here / "done").exists():
    beat("Stopped"); sys.exit(143)
"""
        home, first, second = self.started(sites, tmp_path, trainer)
        eventually(lambda: home.has("run-0-u1-1", "run-1-u1-1"), "both ranks run")
        second.stop()
        assert second.wait() == 143
        (tmp_path / "stop").unlink()
        replacement = home.start(1)
        eventually(lambda: home.has("run-0-u1-2", "run-1-u1-2"), "both ranks run again")
        home.mark("done")
        assert (first.wait(), replacement.wait()) == (0, 0)

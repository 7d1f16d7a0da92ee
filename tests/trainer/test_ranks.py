"""Several ranks over real sockets: they compute what one would, stop together, and mourn each other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kubeformer.contract.job import JobSettings
from tests.unit.trainer.builders import checkpoints, job, published, same_bits

DEADLINE_SECONDS = 300  # far more than it takes, also on a busy machine


class Story:
    """Runs of several jobs, told to one process that forks the ranks of each in turn."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.plan = directory, list[dict[str, object]]()

    def add(self, settings: JobSettings, ranks: int, **events: dict[str, int]) -> None:
        """One more run."""
        path = self.directory / f"settings-{len(self.plan)}.json"
        path.write_text(settings.model_dump_json())
        self.plan.append({"settings": str(path), "ranks": ranks, **events})

    def tell(self) -> list[list[int]]:
        """Runs all, and returns exit codes by run and rank."""
        path = self.directory / "plan.json"
        path.write_text(json.dumps(self.plan))
        result = subprocess.run(
            [sys.executable, "-m", "tests.trainer.ranks", str(path)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=True,
        )
        codes = json.loads(result.stdout.splitlines()[-1])
        assert isinstance(codes, list)
        return codes


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, JobSettings], dict[str, list[int]]]:
    """Jobs by name, and the exit codes of each run."""
    directory = tmp_path_factory.mktemp("ranks")
    jobs = {
        # Batches of 7 rows and a last one of 5: no number of ranks divides them.
        "one": job(directory, name="one", dropout=0.0, batch_size=7, epochs=1),
        "three": job(directory, name="three", dropout=0.0, batch_size=7, epochs=1),
        "whole": job(directory, name="whole", epochs=2),
        "stopped": job(directory, name="stopped", epochs=2),
        "killed": job(directory, name="killed", epochs=2, interval_seconds=10),
    }
    story, names = Story(directory), list[str]()
    for name, run, ranks, events in (
        ("one", "one", 1, {}),
        ("three", "three", 3, {}),
        ("whole", "whole", 2, {}),
        ("stopped", "stopped", 2, {"stopAtStep": {"1": 7}}),
        ("stopped", "stopped again", 2, {}),
        ("killed", "killed", 2, {"dieAtStep": {"1": 8}}),
        ("killed", "killed again", 2, {}),
        ("whole", "whole again", 2, {}),
    ):
        story.add(jobs[name], ranks, **events)
        names.append(run)
    return jobs, dict(zip(names, story.tell(), strict=True))


Told = tuple[dict[str, JobSettings], dict[str, list[int]]]


def test_three_ranks_learn_what_one_learns(told: Told) -> None:
    jobs, codes = told
    assert (codes["one"], codes["three"]) == ([0], [0, 0, 0])
    one, three = published(jobs["one"]), published(jobs["three"])
    for name, value in one.items():
        # Adam divides by the root of squares: where gradients are nearly zero, rounding is a good part of the quotient.
        torch.testing.assert_close(three[name], value, rtol=1e-3, atol=1e-4)


def test_a_wish_to_stop_that_one_rank_hears_stops_all_and_changes_no_bit(told: Told) -> None:
    jobs, codes = told
    assert (codes["stopped"], codes["stopped again"]) == ([143, 143], [0, 0])
    assert same_bits(published(jobs["stopped"]), published(jobs["whole"]))


def test_a_rank_that_dies_takes_the_others_along_and_they_go_on_from_their_checkpoint(told: Told) -> None:
    jobs, codes = told
    assert codes["killed"] == [1, 9]
    assert codes["killed again"] == [0, 0]
    assert len(checkpoints(jobs["killed"])) > 1
    assert same_bits(published(jobs["killed"]), published(jobs["whole"]))


def test_ranks_started_again_after_the_end_have_nothing_to_do(told: Told) -> None:
    assert told[1]["whole again"] == [0, 0]

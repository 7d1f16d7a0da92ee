"""A checkpoint is whole or it is passed over; what is passed over never loads."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from kubeformer_runtime.trainer import checkpoint
from kubeformer_runtime.trainer.checkpoint import Damaged, Snapshot
from kubeformer_runtime.trainer.state import Best, Fingerprint, State

FILES = ("model.safetensors", "optimizer.safetensors", "best.safetensors", "state.json", "digests.json")


def snapshot(step: int, best_step: int | None = 1) -> Snapshot:
    """A state whose numbers all say which step it is."""
    best = None if best_step is None else Best(step=best_step, value=0.5, metrics={"validation/loss": 0.5})
    return Snapshot(
        state=State(
            fingerprint=Fingerprint(data="d", model="m", batch_size=1, seed=0, total_steps=100),
            world_size=1,
            step=step,
            best=best,
        ),
        model={"weight": torch.full((3, 4), float(step))},
        optimizer={"mean": torch.full((12,), float(step))},
        best=None if best is None else {"weight": torch.full((3, 4), float(best.step))},
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = checkpoint.save(tmp_path, snapshot(30), keep=3)
    found, complaints = checkpoint.newest(tmp_path)
    assert found == written
    assert not complaints
    again = checkpoint.load(written.path)
    assert again.state == snapshot(30).state
    assert torch.equal(again.model["weight"], torch.full((3, 4), 30.0))
    assert torch.equal(again.optimizer["mean"], torch.full((12,), 30.0))
    assert again.best is not None
    assert torch.equal(again.best["weight"], torch.full((3, 4), 1.0))


def test_best_weights_are_stored_once_where_they_are_the_current_ones(tmp_path: Path) -> None:
    written = checkpoint.save(tmp_path, snapshot(30, best_step=30), keep=3)
    assert not (written.path / "best.safetensors").exists()
    best = checkpoint.load(written.path).best
    assert best is not None
    assert torch.equal(best["weight"], torch.full((3, 4), 30.0))


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9, 100):
        checkpoint.save(tmp_path, snapshot(step), keep=2)
    assert [path.name for path in checkpoint.numbered(tmp_path)] == ["step-00000010", "step-00000100"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "one bit flipped", "gone", "empty"])
def test_with_any_file_damaged_the_one_before_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    checkpoint.save(tmp_path, snapshot(10), keep=3)
    file = checkpoint.save(tmp_path, snapshot(20), keep=3).path / name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "one bit flipped":
        content[random.Random(name).randrange(len(content))] ^= 0x10
        file.write_bytes(content)
    else:
        file.write_bytes(b"" if damage == "empty" else content[:-5])
    found, complaints = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 10
    assert len(complaints) == 1
    assert "step-00000020" in complaints[0]


def test_a_directory_that_never_got_its_name_is_no_checkpoint(tmp_path: Path) -> None:
    written = checkpoint.save(tmp_path, snapshot(10), keep=3)
    shutil.copytree(written.path, tmp_path / ".step-00000020.77.incomplete")
    (tmp_path / "step-notes").mkdir()
    found, complaints = checkpoint.newest(tmp_path)
    assert found == written
    assert not complaints


def test_where_none_is_whole_there_is_none_and_it_is_said_why(tmp_path: Path) -> None:
    for step in (1, 2):
        (checkpoint.save(tmp_path, snapshot(step), keep=3).path / "state.json").unlink()
    found, complaints = checkpoint.newest(tmp_path)
    assert found is None
    assert len(complaints) == 2
    assert checkpoint.newest(tmp_path / "nowhere") == (None, [])


def test_a_step_that_is_reached_again_replaces_what_is_there(tmp_path: Path) -> None:
    first = checkpoint.save(tmp_path, snapshot(10), keep=3)
    (first.path / "model.safetensors").write_bytes(b"damaged")
    checkpoint.save(tmp_path, snapshot(10), keep=3)
    assert checkpoint.newest(tmp_path) == (first, [])


def test_digests_that_leave_out_a_file_prove_nothing(tmp_path: Path) -> None:
    written = checkpoint.save(tmp_path, snapshot(10), keep=3)
    digests = json.loads((written.path / "digests.json").read_text())
    del digests["model.safetensors"]
    (written.path / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(Damaged, match="does not name all files"):
        checkpoint.verify(written.path)

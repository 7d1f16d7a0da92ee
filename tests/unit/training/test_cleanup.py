"""The clean-up after a deleted TrainingJob removes its checkpoints and cannot be talked into removing more."""

from pathlib import Path

import pytest

from kubeformer_runtime.launcher.cleanup import CleanupError, main, remove


def checkpoints(root: Path, job: str = "spam-1a2b") -> Path:
    place = root / "kubeformer" / "checkpoints" / job
    (place / "step-100").mkdir(parents=True)
    (place / "step-100" / "model.safetensors").write_bytes(b"weights")
    return place


def test_it_removes_the_directory_and_the_parents_left_empty_but_never_the_claim(tmp_path: Path) -> None:
    place = checkpoints(tmp_path)
    assert remove(tmp_path, place)
    assert (tmp_path / "kubeformer").is_dir()
    assert not (tmp_path / "kubeformer" / "checkpoints").exists()


def test_it_leaves_the_checkpoints_of_other_jobs_and_the_published_models(tmp_path: Path) -> None:
    place, other = checkpoints(tmp_path), checkpoints(tmp_path, "mail-3c4d")
    model = tmp_path / "kubeformer" / "models" / "spam" / "model.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"published")
    assert main([str(tmp_path), str(place)]) == 0
    assert not place.exists()
    assert (other / "step-100" / "model.safetensors").exists()
    assert model.exists()


def test_running_it_twice_is_a_success_both_times(tmp_path: Path) -> None:
    place = checkpoints(tmp_path)
    assert [main([str(tmp_path), str(place)]) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("path", ["", ".", "kubeformer", "..", "kubeformer/..", "kubeformer/../../elsewhere/data"])
def test_it_refuses_what_is_no_directory_inside_a_claim(tmp_path: Path, path: str) -> None:
    root = tmp_path / "claims"
    place = checkpoints(root)
    outside = tmp_path / "elsewhere" / "data"
    outside.mkdir(parents=True)
    with pytest.raises(CleanupError, match="nothing was removed"):
        remove(root, root / path)
    assert place.exists()
    assert outside.exists()


def test_it_does_not_follow_a_link_out_of_the_claim(tmp_path: Path) -> None:
    root, outside = tmp_path / "claims", tmp_path / "outside"
    (root / "kubeformer").mkdir(parents=True)
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (root / "kubeformer" / "checkpoints").symlink_to(outside)
    with pytest.raises(CleanupError):
        remove(root, root / "kubeformer" / "checkpoints" / "spam")
    assert remove(root, root / "kubeformer" / "checkpoints")  # the link itself may go
    assert (outside / "kept").exists()


def test_what_an_interrupted_publication_left_goes_and_the_model_stays(tmp_path: Path) -> None:
    models = tmp_path / "kubeformer" / "models"
    for name in ("spam", ".spam.7.incomplete", ".spam.9.replaced", ".spam-two.7.incomplete", "spam.incomplete"):
        (models / name).mkdir(parents=True)
    place = checkpoints(tmp_path)
    assert main([str(tmp_path), "--unfinished", str(models / "spam"), str(place)]) == 0
    assert {path.name for path in models.iterdir()} == {"spam", ".spam-two.7.incomplete", "spam.incomplete"}
    assert not place.exists()
    assert main([str(tmp_path), "--unfinished", str(tmp_path / "kubeformer" / "nowhere" / "spam")]) == 0


def test_a_wrong_call_says_how_to_call_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([])
    assert error.value.code == 2
    assert "usage:" in capsys.readouterr().err

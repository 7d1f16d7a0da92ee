"""A job from settings to published model: what it reports, how it ends, and that stopping it changes nothing."""

import json
import math
from pathlib import Path

import pytest
import torch

from kubeformer.contract.base import Location
from kubeformer.contract.job import EarlyStopping, JobSettings
from kubeformer.contract.names import ExitCode
from kubeformer_runtime.model import load
from kubeformer_runtime.model.digest import digest
from kubeformer_runtime.trainer import run as run_module
from tests.unit.trainer.builders import checkpoints, job, location, published, same_bits, train, write_rows

KINDS = pytest.mark.parametrize("task", ["TextClassification", "LanguageModel"])


def card(settings: JobSettings) -> dict[str, object]:
    """The kubeformer.json that a job published."""
    document = json.loads((Path(settings.output.location.path) / "kubeformer.json").read_text())
    assert isinstance(document, dict)
    return document


def test_a_classifier_learns_what_there_is_to_learn(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 400)
    settings = job(tmp_path, epochs=6, learning_rate=1e-2)
    code, listener = train(settings)
    assert code == ExitCode.SUCCEEDED
    assert listener.last.phase == "Succeeded"
    assert listener.last.metrics["validation/accuracy"] > 0.95


def test_a_language_model_predicts_better_than_chance_afterwards(tmp_path: Path) -> None:
    settings = job(tmp_path, task="LanguageModel", epochs=8, learning_rate=1e-2)
    code, listener = train(settings)
    assert code == ExitCode.SUCCEEDED
    losses = [epoch.loss for epoch in listener.last.epochs]
    assert losses[0] < math.log(300) + 0.3
    assert losses[-1] < losses[0] - 1.0
    assert listener.last.metrics["validation/perplexity"] == pytest.approx(
        math.exp(listener.last.metrics["validation/loss"])
    )


@KINDS
@pytest.mark.parametrize("step", [1, 6, 8], ids=["first step", "end of an epoch", "middle of an epoch"])
def test_stopped_and_resumed_it_publishes_the_same_bits_as_if_never_stopped(
    tmp_path: Path, task: str, step: int
) -> None:
    whole, halves = job(tmp_path, task=task, name="whole"), job(tmp_path, task=task, name="halves")
    train(whole)
    code, listener = train(halves, stop_at_step=step)
    assert code == ExitCode.STOPPED
    assert listener.last.phase == "Stopped"
    assert listener.last.checkpoint is not None
    assert listener.last.checkpoint.step in (step, step + 1)
    code, listener = train(halves)
    assert code == ExitCode.SUCCEEDED
    assert same_bits(published(halves), published(whole))
    assert card(halves)["digest"] == card(whole)["digest"]
    assert card(halves)["metrics"] == card(whole)["metrics"]
    assert [epoch.epoch for epoch in listener.last.epochs] == [1, 2, 3]


def test_with_its_newest_checkpoint_damaged_it_goes_on_from_the_one_before_to_the_same_bits(tmp_path: Path) -> None:
    whole, hurt = job(tmp_path, name="whole"), job(tmp_path, name="hurt", interval_seconds=1)
    train(whole)
    train(hurt, stop_at_step=9)
    before, last = checkpoints(hurt)[-2:]
    (last / "optimizer.safetensors").write_bytes((last / "optimizer.safetensors").read_bytes()[:-1])
    _, listener = train(hurt)
    first_training = next(progress for progress in listener.heard if progress.step > 0)
    assert f"step-{first_training.step:08d}" == before.name
    assert same_bits(published(hurt), published(whole))


def test_a_worker_started_again_after_the_end_has_nothing_to_do(tmp_path: Path) -> None:
    settings = job(tmp_path)
    _, first = train(settings)
    (tmp_path / "rows.jsonl").unlink()
    code, again = train(settings)
    assert code == ExitCode.SUCCEEDED
    assert len(again.heard) == 1
    assert again.last.artifact == first.last.artifact
    assert again.last.epochs == first.last.epochs


def test_a_model_lost_after_the_end_is_published_again_from_the_last_checkpoint(tmp_path: Path) -> None:
    settings = job(tmp_path)
    _, first = train(settings)
    weights = Path(settings.output.location.path) / "model.safetensors"
    weights.write_bytes(b"")
    _, again = train(settings)
    assert again.last.artifact == first.last.artifact
    assert not any(progress.phase == "Evaluating" for progress in again.heard)


def test_what_is_published_is_the_best_evaluation_or_the_last_as_asked(tmp_path: Path) -> None:
    # A learning rate that is too high makes later epochs worse.
    best = job(tmp_path, name="best", epochs=5, learning_rate=0.3, schedule="Constant", optimizer="SGD")
    last = best.model_copy(
        update={
            "checkpoint": best.checkpoint.model_copy(update={"directory": str(tmp_path / "last")}),
            "output": best.output.model_copy(update={"publish": "Last", "location": location(tmp_path / "model")}),
        }
    )
    _, listener = train(best)
    train(last)
    accuracies = {epoch.epoch: epoch.validation_accuracy or 0.0 for epoch in listener.last.epochs}
    winner = max(accuracies, key=lambda epoch: accuracies[epoch])
    assert card(best)["step"] == listener.last.best_step == 6 * winner
    assert card(last)["step"] == 30
    assert listener.last.best_metrics["validation/accuracy"] == accuracies[winner]


def test_a_published_directory_is_complete_and_named_by_its_digest(tmp_path: Path) -> None:
    settings = job(tmp_path)
    _, listener = train(settings)
    directory = Path(settings.output.location.path)
    artifact = listener.last.artifact
    assert artifact is not None
    assert artifact.digest == digest(directory) == card(settings)["digest"]
    assert {path.name for path in directory.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "kubeformer.json",
    }
    loaded = load(directory)
    assert loaded.config.labels == ("fruit", "tool")  # type: ignore[union-attr]
    assert loaded.config.dropout == 0.1  # type: ignore[union-attr]
    data = card(settings)["data"]
    assert isinstance(data, dict)
    assert data["trainRows"] == listener.last.resolved["trainRows"] == 96
    assert not list(directory.parent.glob(".*"))


def test_the_test_split_is_scored_once_with_what_is_published(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", 30, seed=5)
    settings = job(tmp_path)
    settings = settings.model_copy(
        update={"data": settings.data.model_copy(update={"test": location(tmp_path / "test.jsonl")})}
    )
    _, listener = train(settings)
    artifact = listener.last.artifact
    assert artifact is not None
    assert 0 <= artifact.metrics["test/accuracy"] <= 1
    assert listener.last.metrics["test/loss"] == artifact.metrics["test/loss"]
    assert not any("test/loss" in progress.metrics for progress in listener.heard if progress.phase == "Training")


def test_progress_tells_steps_epochs_and_facts_about_the_data(tmp_path: Path) -> None:
    _, listener = train(job(tmp_path, interval_seconds=1))
    steps = [progress.step for progress in listener.heard]
    assert steps == sorted(steps)
    assert {progress.phase for progress in listener.heard} == {
        "Preparing",
        "Training",
        "Evaluating",
        "Checkpointing",
        "Publishing",
        "Succeeded",
    }
    last = listener.last
    assert (last.step, last.total_steps, last.epoch, last.total_epochs) == (18, 18, 3, 3)
    assert last.resolved["vocabularySize"] == 300
    assert last.resolved["stepsPerEpoch"] == 6
    assert last.checkpoint is not None
    assert last.checkpoint.step == 18
    assert any((progress.tokens_per_second or 0) > 0 for progress in listener.heard)
    assert all(epoch.validation_accuracy is not None for epoch in last.epochs)


def test_evaluations_may_come_every_few_steps(tmp_path: Path) -> None:
    _, listener = train(job(tmp_path, evaluate_every_steps=4))
    evaluated = {progress.step for progress in listener.heard if progress.phase == "Evaluating"}
    # While evaluating, Progress still names the last step that it told of.
    assert len([1 for progress in listener.heard if "validation/loss" in progress.metrics]) > 0
    assert evaluated == {4, 8, 12, 16, 18}


def test_early_stopping_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    settings = job(tmp_path, epochs=50, learning_rate=1e-9, early_stopping=EarlyStopping(patience=2))
    code, listener = train(settings)
    assert code == ExitCode.SUCCEEDED
    assert len(listener.last.epochs) == 3
    assert listener.last.best_step == 6


def test_a_batch_in_several_passes_gives_the_model_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once, often = job(tmp_path, name="once", dropout=0.0), job(tmp_path, name="often", dropout=0.0)
    train(once)
    monkeypatch.setattr(run_module, "rows_per_pass", lambda *_: 3)
    train(often)
    one, other = published(once), published(often)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


def test_bfloat16_trains_too_and_publishes_float32(tmp_path: Path) -> None:
    settings = job(tmp_path, precision="BFloat16")
    code, listener = train(settings)
    assert code == ExitCode.SUCCEEDED
    assert listener.last.epochs[-1].loss < listener.last.epochs[0].loss
    assert {tensor.dtype for tensor in published(settings).values()} == {torch.float32}


class TestGoingOnFromWeights:
    def on_from(self, directory: Path, base: JobSettings, **changes: object) -> JobSettings:
        settings = job(directory, name="next", task=base.task.kind, **changes)
        where = Location(uri="pvc://test/base", path=base.output.location.path)
        return settings.model_copy(
            update={"model": settings.model.model_copy(update={"architecture": None, "base": where})}
        )

    @KINDS
    def test_it_begins_where_the_base_ended(self, tmp_path: Path, task: str) -> None:
        base = job(tmp_path, task=task, epochs=6, learning_rate=1e-2)
        _, first = train(base)
        again = self.on_from(tmp_path, base, epochs=1, learning_rate=1e-12)
        code, second = train(again)
        assert code == ExitCode.SUCCEEDED
        assert second.last.metrics["validation/loss"] == pytest.approx(
            first.last.best_metrics["validation/loss"], rel=1e-3
        )
        assert card(again)["base"] == {"uri": "pvc://test/base", "digest": digest(base.output.location.path)}

    def test_other_labels_get_a_new_head_on_the_same_encoder(self, tmp_path: Path) -> None:
        base = job(tmp_path)
        train(base)
        rows = (tmp_path / "rows.jsonl").read_text()
        (tmp_path / "rows.jsonl").write_text(rows.replace("fruit", "edible").replace('"tool"', '"useful"'))
        settings = self.on_from(tmp_path, base, epochs=1, learning_rate=1e-12)
        train(settings)
        before, after = published(base), published(settings)
        assert load(settings.output.location.path).config.labels == ("edible", "useful")  # type: ignore[union-attr]
        torch.testing.assert_close(
            after["model.embeddings.tok_embeddings.weight"], before["model.embeddings.tok_embeddings.weight"]
        )
        assert not torch.allclose(after["classifier.weight"], before["classifier.weight"])

    def test_a_base_that_was_altered_is_refused(self, tmp_path: Path) -> None:
        base = job(tmp_path)
        train(base)
        settings = self.on_from(tmp_path, base)
        where = settings.model.base
        assert where is not None
        altered = where.model_copy(update={"digest": "sha256:" + "0" * 64})
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"base": altered})})
        code, listener = train(settings)
        assert code == ExitCode.INVALID
        assert listener.last.failure is not None
        assert listener.last.failure.reason == "ModelInvalid"
        assert "the job was made for sha256:0000" in listener.last.failure.message

    def test_a_classifier_is_no_language_model(self, tmp_path: Path) -> None:
        base = job(tmp_path)
        train(base)
        settings = self.on_from(tmp_path, base)
        settings = settings.model_copy(update={"task": job(tmp_path, task="LanguageModel").task})
        settings = settings.model_copy(
            update={"training": settings.training.model_copy(update={"objective_metric": "validation/loss"})}
        )
        _, listener = train(settings)
        assert listener.last.failure is not None
        assert "is a classifier; a languageModel goes on from a language model" in listener.last.failure.message


class TestWhatCannotWorkEndsAtOnceAndSaysWhy:
    def refused(self, settings: JobSettings, reason: str) -> str:
        code, listener = train(settings)
        assert code == ExitCode.INVALID
        assert listener.last.phase == "Failed"
        assert listener.last.failure is not None
        assert listener.last.failure.reason == reason
        return listener.last.failure.message

    def test_no_data(self, tmp_path: Path) -> None:
        settings = job(tmp_path)
        (tmp_path / "rows.jsonl").unlink()
        assert "pvc://test/rows.jsonl" in self.refused(settings, "DataNotFound")

    def test_an_objective_that_nobody_measures(self, tmp_path: Path) -> None:
        message = self.refused(job(tmp_path, objective_metric="validation/f1"), "SettingsInvalid")
        assert "'validation/f1'; this task measures validation/loss, validation/accuracy" in message

    def test_heads_that_do_not_divide_the_width(self, tmp_path: Path) -> None:
        assert "width 16 cannot be split evenly over 3 heads" in self.refused(job(tmp_path, heads=3), "SettingsInvalid")

    def test_a_loss_that_is_no_number_any_more(self, tmp_path: Path) -> None:
        settings = job(tmp_path, optimizer="SGD", learning_rate=1e25, max_gradient_norm=0.0, warmup_percent=0)
        message = self.refused(settings, "TrainingDiverged")
        assert "lower spec.training.learningRate (now 1e+25)" in message
        assert not checkpoints(settings)

    def test_checkpoints_of_another_run(self, tmp_path: Path) -> None:
        train(job(tmp_path), stop_at_step=3)
        assert "belongs to a run over other data or settings" in self.refused(
            job(tmp_path, batch_size=8), "SettingsInvalid"
        )

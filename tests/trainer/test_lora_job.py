"""A whole job with LoRA over float, int8 and NF4 weights: it learns, can be stopped anywhere, is served both ways."""

import json
import random
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from kubeformer.contract.job import JobSettings, Lora, Model
from kubeformer.contract.names import ExitCode
from kubeformer_runtime.engine.llama_runner import LlamaRunner
from kubeformer_runtime.engine.lora import read_adapter
from kubeformer_runtime.model import load
from kubeformer_runtime.model.digest import digest
from kubeformer_runtime.model.llama import Llama
from tests.engine.family_builders import config_of, play
from tests.unit.trainer.builders import checkpoints, job, location, published, same_bits, train

Base = Literal["Float", "Int8", "NF4"]
BASES: tuple[Base, ...] = ("Float", "Int8", "NF4")
FINE = {"epochs": 5, "learning_rate": 2e-2, "batch_size": 16}


def write_sentences(path: Path, count: int, *, backwards: bool = False) -> Path:
    """Sentences in which thing and colour belong together; to a model that knows them, backwards is a new language."""
    draw = random.Random(backwards)
    pairs = [("apple", "red"), ("pear", "green"), ("plum", "blue"), ("saw", "grey"), ("drill", "black")]
    with path.open("w") as file:
        for _ in range(count):
            thing, colour = draw.choice(pairs)
            words = f"the {thing} over there is {colour} and so is the other {thing} {draw.randrange(999)}".split()
            file.write(json.dumps({"text": " ".join(reversed(words) if backwards else words)}) + "\n")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model; jobs here go on with it."""
    directory = tmp_path_factory.mktemp("base")
    write_sentences(directory / "rows.jsonl", 200)
    settings = job(directory, task="LanguageModel", layers=2, width=32, epochs=8, dropout=0.0)
    assert train(settings)[0] == ExitCode.SUCCEEDED
    return Path(settings.output.location.path)


def lora_job(directory: Path, base: Path, name: str, base_weights: Base, **changes: object) -> JobSettings:
    """Goes on from the base with sentences that it does not know."""
    if not (directory / "rows.jsonl").exists():
        write_sentences(directory / "rows.jsonl", 120, backwards=True)
    settings = job(directory, task="LanguageModel", name=name, **{**FINE, **changes})
    lora = Lora(rank=8, alpha=16.0, targets=("Attention", "MLP"), base_weights=base_weights)
    return settings.model_copy(update={"model": Model(base=location(base), lora=lora)})


def test_adapters_over_few_bits_learn_what_those_over_float_learn(tmp_path: Path, base: Path) -> None:
    losses: dict[str, tuple[float, float]] = {}
    for kind in BASES:
        code, heard = train(lora_job(tmp_path, base, kind, kind))
        assert code == ExitCode.SUCCEEDED
        epochs = heard.last.epochs
        first, last = epochs[0].validation_loss, epochs[-1].validation_loss
        assert first is not None
        assert last is not None
        losses[kind] = first, last
    started = losses["Float"][0]
    assert losses["Float"][1] < 0.8 * started
    for kind in ("Int8", "NF4"):
        assert losses[kind][1] == pytest.approx(losses["Float"][1], rel=0.05 if kind == "Int8" else 0.15)


@pytest.mark.parametrize("kind", BASES)
def test_a_stopped_job_goes_on_to_the_last_bit_and_checkpoints_hold_adapters_alone(
    tmp_path: Path, base: Path, kind: Base
) -> None:
    short = {"epochs": 2, "interval_seconds": 3600}
    whole, halved = (lora_job(tmp_path, base, name, kind, **short) for name in ("whole", "halved"))
    assert train(whole)[0] == ExitCode.SUCCEEDED
    assert train(halved, stop_at_step=7)[0] == ExitCode.STOPPED
    held = load_file(checkpoints(halved)[-1] / "model.safetensors")
    assert held
    assert all(name.endswith((".lora_A", ".lora_B")) for name in held)
    assert train(halved)[0] == ExitCode.SUCCEEDED
    assert same_bits(published(whole), published(halved))
    adapters = [Path(settings.output.location.path) / "adapter" for settings in (whole, halved)]
    assert digest(adapters[0]) == digest(adapters[1])


@pytest.mark.parametrize("kind", BASES)
def test_what_is_published_is_served_as_an_adapter_of_the_base_and_as_a_model(
    tmp_path: Path, base: Path, kind: Base
) -> None:
    settings = lora_job(tmp_path, base, "job", kind, epochs=2)
    assert train(settings)[0] == ExitCode.SUCCEEDED
    output = Path(settings.output.location.path)
    card = json.loads((output / "kubeformer.json").read_text())
    assert card["adapter"] == {"path": "adapter", "digest": digest(output / "adapter")}
    assert card["base"]["digest"] == digest(base)
    runner = LlamaRunner(config_of(base), load(base).weights, num_blocks=40, block_size=4)
    runner.add_adapter("colours", read_adapter(output / "adapter", runner.config))
    merged, plain = (load(path).module() for path in (output, base))
    assert isinstance(merged, Llama)
    assert isinstance(plain, Llama)
    prompts = [[5, 6, 7, 8], [9, 40, 3]]
    for played in play(runner, prompts, adapters=["colours"] * 2):
        tokens = torch.tensor([played.tokens[:-1]])
        with torch.no_grad():
            expected, before = merged(tokens)[0], plain(tokens)[0]
        rows = slice(len(played.prompt) - 1, None)
        torch.testing.assert_close(torch.stack(played.logits), expected[rows], atol=1e-4, rtol=0)
        assert (expected[rows] - before[rows]).abs().max() > 0.05


def test_a_checkpoint_of_other_adapters_is_not_gone_on_with(tmp_path: Path, base: Path) -> None:
    settings = lora_job(tmp_path, base, "job", "Float")
    assert train(settings, stop_at_step=3)[0] == ExitCode.STOPPED
    model = settings.model.model_copy(update={"lora": Lora(rank=4)})
    code, heard = train(settings.model_copy(update={"model": model}))
    assert code == ExitCode.INVALID
    assert heard.last.failure is not None
    assert "belongs to a run over other data or settings" in heard.last.failure.message


def test_adapters_without_a_base_are_refused(tmp_path: Path) -> None:
    settings = job(tmp_path, task="LanguageModel")
    model = settings.model.model_copy(update={"lora": Lora()})
    code, heard = train(settings.model_copy(update={"model": model}))
    assert code == ExitCode.INVALID
    assert heard.last.failure is not None
    assert "spec.model.lora goes beside given weights" in heard.last.failure.message


def test_a_classifier_with_new_labels_trains_its_head_beside_the_adapters(tmp_path: Path) -> None:
    first = job(tmp_path, name="first", epochs=15, learning_rate=1e-2)
    assert train(first)[0] == ExitCode.SUCCEEDED
    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "rows.jsonl").write_text(rows.replace('"fruit"', '"eaten"').replace('"tool"', '"used"'))
    settings = job(tmp_path / "second", name="second", epochs=6, learning_rate=1e-2)
    model = Model(base=location(Path(first.output.location.path)), lora=Lora(rank=2, base_weights="Int8"))
    settings = settings.model_copy(update={"model": model})
    code, heard = train(settings)
    assert code == ExitCode.SUCCEEDED
    held = load_file(checkpoints(settings)[-1] / "model.safetensors")
    assert {"classifier.weight", "classifier.bias"} < held.keys()
    assert all(name.startswith(("head.", "classifier.")) or ".lora_" in name for name in held)
    assert heard.last.best_metrics["validation/accuracy"] > 0.8
    output = Path(settings.output.location.path)
    assert load(output).config.labels == ("eaten", "used")  # type: ignore[union-attr]
    assert not (output / "adapter").exists()

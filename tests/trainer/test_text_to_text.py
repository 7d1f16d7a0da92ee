"""Texts into texts: pairs are read, learned, written and measured, as sacrebleu and rouge-score measure them."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF

from kubeformer.contract.job import JobSettings, TextToText
from kubeformer.contract.names import ExitCode
from kubeformer_runtime.data.prepare import prepare_here
from kubeformer_runtime.data.prepared import IGNORE
from kubeformer_runtime.data.recipes.text_to_text import TextToTextSplit, text_to_text_batch
from kubeformer_runtime.model.config import read_config
from kubeformer_runtime.model.seq2seq_config import Seq2SeqConfig
from kubeformer_runtime.model.weights import load
from kubeformer_runtime.trainer.text_metrics import SUMS, chrf, chrf_sums, rouge_l
from tests.unit.trainer.builders import job, train

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf"}


def write_pairs(path: Path, count: int = 800) -> None:
    """Two to four numbers in English and, in the same order, in German."""
    draw, lines = random.Random(3), list[str]()
    for _ in range(count):
        words = [draw.choice(list(WORDS)) for _ in range(draw.randint(2, 4))]
        row = {"source": " ".join(words), "target": " ".join(WORDS[word] for word in words)}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


def translation(directory: Path, **changes: object) -> JobSettings:
    """A job that learns to translate numbers."""
    made = job(directory, layers=1, width=32, activation="ReLU", dropout=0.0, learning_rate=1e-2, **changes)
    training = made.training.model_copy(update={"objective_metric": "validation/chrf"})
    task = TextToText(max_source_length=12, max_target_length=12)
    return made.model_copy(update={"task": task, "training": training})


def test_a_job_learns_to_translate_and_publishes_a_model_that_writes(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl")
    settings_ = translation(tmp_path, epochs=16)
    code, said = train(settings_)
    assert code == ExitCode.SUCCEEDED
    assert said.last.artifact is not None
    metrics = said.last.artifact.metrics
    assert metrics["validation/chrf"] > 90
    assert metrics["validation/rouge-l"] > 90
    directory = settings_.output.location.path
    assert isinstance(read_config(directory), Seq2SeqConfig)

    from transformers import AutoTokenizer, PegasusForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(directory)
    source_1S = tokenizer("three one five", return_tensors="pt").input_ids
    network = load(directory).module()
    ours = network.generate(source_1S, torch.tensor([source_1S.shape[1]]), 12)[0]  # type: ignore[operator]
    assert tokenizer.decode(ours) == "drei eins fünf"
    theirs = PegasusForConditionalGeneration.from_pretrained(directory).eval()
    target_1T = torch.tensor([[1, *ours]])
    with torch.no_grad():
        wanted = theirs(input_ids=source_1S, decoder_input_ids=target_1T).logits
        found = network(source_1S, torch.tensor([source_1S.shape[1]]), target_1T)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_source_is_on_one_side_of_the_split_whatever_its_targets(tmp_path: Path) -> None:
    lines = [json.dumps({"source": f"text {n % 20}", "target": f"Text {n}"}) + "\n" for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    prepared = prepare_here(translation(tmp_path), lambda: None)
    assert isinstance(prepared.train, TextToTextSplit)
    assert isinstance(prepared.validation, TextToTextSplit)
    sides = [{tuple(split.source(row)) for row in range(len(split))} for split in (prepared.train, prepared.validation)]
    assert not sides[0] & sides[1]
    assert prepared.report.duplicates == 40


def test_a_decoder_reads_the_start_and_the_target_so_far_and_fillers_count_for_nothing() -> None:
    split = TextToTextSplit(
        np.array([1, 8, 2, 1, 9, 9, 2], dtype=np.int32), np.array([0, 3, 7]),
        np.array([5, 6, 2, 7, 2], dtype=np.int32), np.array([0, 3, 5]),
    )  # fmt: skip
    batch = text_to_text_batch(split, np.array([0, 1, 1]), np.array([1, 1, 0], dtype=np.float32), pad_id=0, start_id=1)
    assert batch.sources_BS[:, :4].tolist() == [[1, 8, 2, 0], [1, 9, 9, 2], [1, 9, 9, 2]]
    assert batch.inputs_BT[:2, :3].tolist() == [[1, 5, 6], [1, 7, 0]]
    assert batch.targets_BT[:2, :3].tolist() == [[5, 6, 2], [7, 2, IGNORE]]
    assert set(batch.targets_BT[2].tolist()) == {IGNORE}


TEXTS = st.lists(st.tuples(st.text("abcä .", max_size=20), st.text("abcä .", max_size=20)), min_size=1, max_size=4)


@settings(deadline=None)
@given(TEXTS)
def test_chrf_is_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    sums = np.sum([chrf_sums(written, wanted) for written, wanted in pairs], axis=0)
    assert len(sums) == SUMS
    theirs = CHRF().corpus_score([written for written, _ in pairs], [[wanted for _, wanted in pairs]])
    assert chrf(sums.tolist()) == pytest.approx(theirs.score, abs=1e-9)


def test_rouge_l_is_that_of_rouge_score_and_knows_other_letters_than_english() -> None:
    written, wanted = ["the cat sat on a mat"], ["the cat is on the mat"]
    theirs = RougeScorer(["rougeL"]).score(wanted[0], written[0])["rougeL"].fmeasure
    assert rouge_l(written, wanted) == pytest.approx(100 * theirs)
    assert rouge_l(["Größe ändern"], ["größe ändern"]) == pytest.approx(100)

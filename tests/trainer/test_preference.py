"""DPO: the plain formula of the paper, numbers worked by hand, and answers that are preferred afterwards."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kubeformer.contract.job import Chat, JobSettings, Preference
from kubeformer.contract.names import ExitCode
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.order import in_order
from kubeformer_runtime.data.prepare import prepare_here
from kubeformer_runtime.data.recipes.preference import PreferenceSplit
from kubeformer_runtime.trainer.networks import make_network
from kubeformer_runtime.trainer.tasks import make_task
from kubeformer_runtime.trainer.tasks.preference import PreferenceTask, margins
from tests.trainer.jobs import job_of, write_jsonl
from tests.unit.trainer.builders import train


def test_numbers_worked_by_hand() -> None:
    # The model gained 2 nats on the chosen answer and lost 1 on the rejected one: 3 nats, times beta 0.1.
    logprobs, reference = torch.tensor([-10.0, -30.0]), torch.tensor([[-12.0, -29.0]])
    margin = margins(logprobs, reference, 0.1)
    assert margin.tolist() == pytest.approx([0.3])
    assert -math.log(1 / (1 + math.exp(-0.3))) == pytest.approx(0.554355, abs=1e-6)
    assert -torch.nn.functional.logsigmoid(margin).item() == pytest.approx(0.554355, abs=1e-6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> JobSettings:
    """A model that has learned to answer a little."""
    directory = tmp_path_factory.mktemp("base")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": f"{('yes', 'no')[n % 2]} {n}"},
            ]
        }
        for n in range(60)
    ]
    settings = job_of(directory, Chat(sequence_length=64), write_jsonl(directory / "talk.jsonl", rows), epochs=2)
    assert train(settings)[0] == ExitCode.SUCCEEDED
    return settings


def preferring(directory: Path, base: JobSettings, **training: object) -> JobSettings:
    """A job that prefers yes to no."""
    rows = [{"prompt": f"say {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(40)]
    source = write_jsonl(directory / "pairs.jsonl", rows)
    where = Path(base.output.location.path)
    return job_of(directory, Preference(beta=0.5, sequence_length=64), source, base=where, name="dpo", **training)


def test_it_begins_at_log_2_where_nothing_is_preferred_yet(tmp_path: Path, base: JobSettings) -> None:
    settings = preferring(tmp_path, base)
    prepared = prepare_here(settings, lambda: None)
    task, network = make_task(settings, prepared), make_network(settings, prepared)
    with torch.no_grad():
        (share,) = in_order(len(prepared.train), 100, 0, 1)
        tally = task.tally(network, task.batch(prepared.train, share))
    assert tally.weight == 32
    assert float(tally.loss) / tally.weight == pytest.approx(math.log(2), abs=1e-4)


def test_loss_and_gradient_are_those_of_the_plain_formula_row_by_row(tmp_path: Path, base: JobSettings) -> None:
    settings = preferring(tmp_path, base)
    prepared = prepare_here(settings, lambda: None)
    split, network = prepared.train, make_network(settings, prepared)
    assert isinstance(split, PreferenceSplit)
    task = make_task(settings, prepared)
    assert isinstance(task, PreferenceTask)
    shifted = replace(split, reference_R2=split.reference_R2 + np.asarray([[0.5, -0.25]], dtype=np.float32))
    (share,) = in_order(len(split), 100, 0, 1)
    tally = task.tally(network, task.batch(shifted, share))
    found = torch.autograd.grad(tally.loss, list(network.parameters()))

    losses = []
    for row in range(len(split)):
        gained = []
        for sequence, reference in zip((2 * row, 2 * row + 1), shifted.reference_R2[row], strict=True):
            piece = slice(split.offsets_R21[sequence], split.offsets_R21[sequence + 1])
            ids, said = torch.from_numpy(split.token_ids_X[piece].astype(np.int64)), split.said_X[piece]
            logprob_NV = torch.log_softmax(network(ids[None])[0], dim=-1)
            said_at = [place for place in range(1, len(ids)) if said[place]]
            gained.append(sum(logprob_NV[place - 1, ids[place]] for place in said_at) - float(reference))
        losses.append(-torch.log(torch.sigmoid(0.5 * (gained[0] - gained[1]))))
    expected = torch.stack(losses).sum()
    torch.testing.assert_close(tally.loss, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, torch.autograd.grad(expected, list(network.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_what_was_preferred_becomes_likelier_also_for_prompts_never_seen(tmp_path: Path, base: JobSettings) -> None:
    settings = preferring(tmp_path, base, epochs=4, learning_rate=1e-3)
    code, listener = train(settings)
    assert code == ExitCode.SUCCEEDED
    assert listener.last.metrics["validation/accuracy"] == 1.0
    assert listener.last.metrics["validation/margin"] > 0.5
    assert listener.last.metrics["validation/loss"] < 0.5


def test_without_a_base_there_is_nothing_to_prefer_against(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    settings = job_of(tmp_path, Preference(), write_jsonl(tmp_path / "pairs.jsonl", rows))
    with pytest.raises(DataError, match=r"set spec.model.uri"):
        prepare_here(settings, lambda: None)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"chosen": "same"}, "fields 'chosen' and 'rejected' are the same answer"),
        ({"chosen": 3}, "field 'chosen' holds a number, not a text"),
        ({"rejected": [{"role": "user", "content": "x"}]}, "does not end with a message of the role assistant"),
    ],
)
def test_rows_that_prefer_nothing_say_why(tmp_path: Path, base: JobSettings, row: dict[str, object], why: str) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "same", **row}]
    settings = preferring(tmp_path, base)
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError, match="1 of 1 rows") as error:
        prepare_here(settings, lambda: None)
    assert why in error.value.message


def test_answers_beyond_the_sequence_length_name_the_setting(tmp_path: Path, base: JobSettings) -> None:
    settings = preferring(tmp_path, base)
    settings = settings.model_copy(update={"task": Preference(sequence_length=4)})
    with pytest.raises(DataError, match=r"task.preference.sequenceLength \(4 tokens\) none of 32 rows"):
        prepare_here(settings, lambda: None)

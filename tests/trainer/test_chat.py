"""A chat from rows to a model that answers: the tokens that are learned are those that `transformers` marks too."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from kubeformer.contract.job import Chat
from kubeformer.contract.names import ExitCode
from kubeformer_runtime.chat_template import Template
from kubeformer_runtime.data.order import in_order
from kubeformer_runtime.data.prepare import prepare_here
from kubeformer_runtime.data.prepared import Prepared
from kubeformer_runtime.data.recipes.chat import Conversation, rendered_with_answers, said_tokens
from kubeformer_runtime.data.recipes.packed import PackedSplit
from kubeformer_runtime.data.tokenizer import TextTokenizer
from kubeformer_runtime.trainer.networks import make_network
from kubeformer_runtime.trainer.tasks import make_task
from tests.trainer.jobs import job_of, write_jsonl
from tests.unit.trainer.builders import train

MESSAGES = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "What is the capital\nof  France?"},
    {"role": "assistant", "content": "Paris it is."},
    {"role": "user", "content": "assistant\nParis it is."},
    {"role": "assistant", "content": "  So you say!"},
)
ROLE = "{{ '<|im_start|>' + m['role'] + '\n' }}"
TEMPLATES = {
    "ChatML": "{% for m in messages %}" + ROLE + "{{ m['content'] + '<|im_end|>' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "Llama 2": "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + '<eos>' }}"
    "{% else %}{{ '<bos>[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
}
MARKED = {
    "ChatML": "{% for m in messages %}" + ROLE + "{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}",
    "Llama 2": "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ ' ' + m['content'] + '<eos>' }}{% endgeneration %}"
    "{% else %}{{ '<bos>[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("marked", [True, False])
def test_the_assistants_tokens_are_those_that_transformers_finds(tmp_path: Path, name: str, marked: bool) -> None:
    texts = [message["content"] for message in MESSAGES] * 3
    tokenizer = TextTokenizer.train(texts, 320, more_tokens=("<|im_start|>", "<|im_end|>"))
    tokenizer.save(tmp_path)
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = reference.apply_chat_template(
        list(MESSAGES), chat_template=MARKED[name], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = Template((MARKED if marked else TEMPLATES)[name], tokenizer.named_tokens())
    text, spans = rendered_with_answers(ours, Conversation(MESSAGES, (), ""), tokenizer)
    ((ids, places),) = tokenizer.encode_with_places([text])
    assert ids == expected["input_ids"]
    assert [int(said) for said in said_tokens(places, spans)] == expected["assistant_masks"]
    assert sum(expected["assistant_masks"]) > 5


COLOURS = {"plum": "purple", "fig": "green", "cherry": "red", "lemon": "yellow"}


def conversations(directory: Path, count: int = 60) -> Path:
    """Which colour a fruit has, asked once or twice."""
    rows = []
    for number in range(count):
        fruits = [[*COLOURS][number % 4], [*COLOURS][number // 4 % 4]][: 1 + number % 2]
        said = [text for fruit in fruits for text in (f"{fruit}?", f"it is {COLOURS[fruit]}")]
        said[0] = f"question {number}: {said[0]}"
        rows.append({"messages": [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(said)]})
    return write_jsonl(directory / "talk.jsonl", rows)


def unpacked(prepared: Prepared) -> PackedSplit:
    """The same documents, each in a row of its own."""
    split = prepared.train
    assert isinstance(split, PackedSplit)
    inputs, targets, documents = [], [], []
    for row in range(len(split)):
        for number in range(split.documents_RS[row].max() + 1):
            here = split.documents_RS[row] == number
            gap = len(here) - int(here.sum())
            inputs.append(np.pad(split.inputs_RS[row][here], (0, gap)))
            targets.append(np.pad(split.targets_RS[row][here], (0, gap), constant_values=-100))
            documents.append(np.pad(split.documents_RS[row][here] * 0, (0, gap), constant_values=-1))
    counts = [np.asarray([int((row >= 0).sum()) for row in rows]) for rows in (targets, documents)]
    return PackedSplit(np.stack(inputs), np.stack(targets), np.stack(documents), *counts)


def test_packed_or_each_alone_the_loss_and_its_gradient_are_the_same(tmp_path: Path) -> None:
    settings = job_of(tmp_path, Chat(sequence_length=128), conversations(tmp_path))
    prepared = prepare_here(settings, lambda: None)
    task, network = make_task(settings, prepared), make_network(settings, prepared)
    alone = unpacked(prepared)
    assert len(alone) == 48
    assert len(prepared.train) < 24

    def result(split: PackedSplit) -> tuple[float, float, torch.Tensor]:
        network.zero_grad()
        (share,) = in_order(len(split), 1000, 0, 1)
        tally = task.tally(network, task.batch(split, share))
        (tally.loss / tally.weight).backward()
        return tally.weight, float(tally.loss.detach()), torch.cat([p.grad.flatten() for p in network.parameters()])

    assert isinstance(prepared.train, PackedSplit)
    packed, single = result(prepared.train), result(alone)
    assert packed[0] == single[0]
    assert packed[1] == pytest.approx(single[1], rel=1e-5)
    torch.testing.assert_close(packed[2], single[2], rtol=1e-3, atol=1e-6)


def test_it_learns_to_answer_and_transformers_continues_a_prompt_with_the_answer_and_its_end(tmp_path: Path) -> None:
    settings = job_of(
        tmp_path, Chat(sequence_length=64), conversations(tmp_path, 160), epochs=10, learning_rate=1e-2, batch_size=4
    )
    code, listener = train(settings)
    assert code == ExitCode.SUCCEEDED
    assert listener.last.metrics["validation/accuracy"] > 0.9
    directory = Path(settings.output.location.path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    asked = [{"role": "user", "content": "question 5: cherry?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    # It ended by itself: config.json knows what ends an answer.
    assert tokenizer.decode(answer) == "it is red<|im_end|>"

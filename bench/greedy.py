"""Greedy tokens of SmolLM2-135M against `transformers` in float32: `make bench NAME=greedy`, or python -m bench.greedy.

Each prompt is answered by `transformers` alone and by our engine alone, then all prompts by our engine together in
several mixes of batch, chunk, prefix hit and preemption. Every token has to be equal; log-probabilities of the
chosen tokens are compared too. The last line is one JSON object; exit code 0 only if every token is equal.

    --prompts 50  --tokens 32  --threads 2
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # threads that wait must not starve others; read when torch loads

import torch
from transformers import AutoModelForCausalLM

from bench.harness import emit
from examples import smollm2
from kubeformer_runtime.engine.core import EngineCore, Request
from kubeformer_runtime.engine.llama_runner import LlamaRunner
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.scheduler import SchedulerConfig
from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.weights import load

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Write one sentence about the sea.",
    "What is 12 plus 30?",
    "Explain what a computer does, in one sentence.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "What is a noun?",
    "List the planets of the solar system.",
    "Why is the sky blue?",
    "Write a haiku about winter.",
    "What does DNA stand for?",
    "How many legs does a spider have?",
    "Say hello in five languages.",
    "What is the boiling point of water?",
    "Describe a cat to someone who has never seen one.",
    "What is photosynthesis?",
    "Give an example of a mammal that can fly.",
    "Who was the first person on the moon?",
    "Write a short poem about bread.",
    "What is the largest ocean?",
    "Tell me a joke.",
    "What is a prime number?",
    "How do I boil an egg?",
)
TEXTS = (
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "The three laws of thermodynamics are",
    "import numpy as np\n\nx = np.",
    "In 1969, the United States",
    "To make a good cup of coffee, you",
    "Dear Sir or Madam,\n\nI am writing to",
    "The difference between a frog and a toad is",
    "1, 1, 2, 3, 5, 8,",
    "SELECT name, age FROM",
    "Kubernetes is an open-source system for",
    "It was a dark and stormy night;",
    "The mitochondria is",
    "La capitale de la France est",
    "# Shopping list\n\n- milk\n- ",
    "The square root of 144 is",
    "Roses are red,\nviolets are",
    "Breaking news:",
    "A haiku:\n\n",
    "She opened the door and saw",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "All human beings are born",
    "<html>\n<head>\n<title>",
    "Q: How far away is the moon?\nA:",
    "naïve café 日本語 🙂",
)
# Ways to run all prompts together: (name, sequences at once, tokens a step, blocks of the cache).
MIXES = (
    ("together, one batch", 64, 4096, 1024),
    ("together, again: every prefix cached", 64, 4096, 1024),
    ("together, chunks of 24 tokens", 16, 24, 1024),
    ("together, cache too small: preemption", 16, 256, 48),
)
END = 2  # <|im_end|>


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens of one greedy answer and the log-probability of each."""

    tokens: list[int]
    logprobs: list[float]


def prompts(tokenizer: EngineTokenizer, count: int) -> list[list[int]]:
    """Token ids of `count` prompts: questions in the chat format and beginnings of texts, in turn."""
    chats = [
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in QUESTIONS
    ]
    texts = [text for pair in zip(chats, TEXTS, strict=True) for text in pair]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts[:count]]


@torch.inference_mode()
def reference(directory: Path, prompt_list: Sequence[list[int]], tokens: int) -> list[Answer]:
    """What `transformers` answers in float32, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    answers = []
    for prompt in prompt_list:
        found = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=END,
        )
        chosen = found.sequences[0, len(prompt) :].tolist()
        rows = torch.cat(found.logits).float().log_softmax(-1)
        answers.append(Answer(chosen, [float(row[token]) for row, token in zip(rows, chosen, strict=True)]))
    return answers


def build_core(directory: Path, max_num_seqs: int, max_tokens: int, num_blocks: int) -> EngineCore:
    """Our engine in float32."""
    model = load(directory, torch.float32)
    if not isinstance(model.config, LlamaConfig):
        raise TypeError("SmolLM2 is a Llama")
    length = min(512, num_blocks * 16)
    runner = LlamaRunner(model.config, model.weights, num_blocks=num_blocks, max_length=length)
    config = SchedulerConfig(max_num_seqs, max_tokens, length)
    return EngineCore(runner, config, EngineTokenizer.load(directory), frozenset({END}))


def ours(core: EngineCore, prompt_list: Sequence[list[int]], tokens: int) -> tuple[list[Answer], int]:
    """What our engine answers to all prompts at once, and how often it preempted a sequence."""
    params = SamplingParams(max_tokens=tokens, temperature=0.0, logprobs=0)
    answers = [Answer([], []) for _ in prompt_list]
    for number, prompt in enumerate(prompt_list):
        core.add(Request(str(number), prompt, params, 0))
    preemptions = 0
    while core.has_work:
        output = core.step()
        preemptions += output.stats.preemptions
        for delta in output.deltas:
            for item in delta.tokens:
                answers[int(delta.request_id)].tokens.append(item.token)
                answers[int(delta.request_id)].logprobs.append(item.logprob or 0.0)
    core.check_books()
    return answers, preemptions


def compare(expected: Sequence[Answer], found: Sequence[Answer]) -> tuple[int, float]:
    """How many answers are equal token by token, and the largest difference of log-probabilities before any differs."""
    equal, largest = 0, 0.0
    for want, have in zip(expected, found, strict=True):
        equal += want.tokens == have.tokens
        for a, b, x, y in zip(want.tokens, have.tokens, want.logprobs, have.logprobs, strict=False):
            largest = max(largest, abs(x - y))
            if a != b:
                break
    return equal, largest


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    directory = smollm2.ensure()
    prompt_list = prompts(EngineTokenizer.load(directory), arguments.prompts)
    begin = time.perf_counter()
    expected = reference(directory, prompt_list, arguments.tokens)
    print(f"{'way to run':<42}{'equal':>10}{'largest Δ log p':>18}{'preemptions':>13}{'s':>8}")
    print(f"{'transformers, alone':<42}{'-':>10}{'-':>18}{'-':>13}{time.perf_counter() - begin:>8.1f}")

    rows: list[dict[str, object]] = []

    def report(name: str, found: Sequence[Answer], preemptions: int, seconds: float) -> None:
        equal, largest = compare(expected, found)
        rows.append({"way": name, "equal": equal, "largestLogprobDifference": largest, "preemptions": preemptions})
        print(f"{name:<42}{equal:>6}/{len(expected):<3}{largest:>18.1e}{preemptions:>13}{seconds:>8.1f}", flush=True)

    core = build_core(directory, 1, 4096, 1024)
    begin = time.perf_counter()
    found = []
    for prompt in prompt_list:
        found += ours(core, [prompt], arguments.tokens)[0]
        core.forget_prefixes()
    report("alone", found, 0, time.perf_counter() - begin)
    previous = None
    for name, most, step, blocks in MIXES:
        if "again" not in name or previous is None:
            previous = build_core(directory, most, step, blocks)
        begin = time.perf_counter()
        found, preemptions = ours(previous, prompt_list, arguments.tokens)
        report(name, found, preemptions, time.perf_counter() - begin)
    equal = all(row["equal"] == len(expected) for row in rows)
    emit(
        "greedy",
        {
            "model": smollm2.NAME,
            "prompts": len(expected),
            "tokens": sum(len(answer.tokens) for answer in expected),
            "allEqual": equal,
            "ways": rows,
        },
    )
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())

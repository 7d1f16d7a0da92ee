"""Greedy tokens of SmolLM2-135M against `transformers` in float32: `make bench NAME=greedy`, or python -m bench.greedy.

Each prompt is answered by `transformers` alone and by our engine alone, then all prompts by our engine together in
several mixes of batch, chunk, prefix hit, preemption, guessed tokens and a LoRA adapter; what the adapter says is
compared with `transformers` on weights into which it was merged. Every token has to be equal; log-probabilities of
the chosen tokens are compared too. The last line is one JSON object; exit code 0 only if every token is equal.

    --prompts 50  --tokens 32  --threads 2

What `transformers` answered is kept in the cache, by prompts, tokens and versions.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # threads that wait must not starve others; read when torch loads

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from bench.engine.models import Prompts
from bench.harness import emit
from examples import smollm2
from kubeformer.contract.base import Location
from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.engine.core import EngineCore, Request
from kubeformer_runtime.engine.runners import plan_runner
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


@dataclass(frozen=True, slots=True)
class Mix:
    """A way to run all prompts together."""

    name: str
    max_num_seqs: int
    max_tokens: int  # a step
    num_blocks: int
    guesses: int = 0  # n-gram drafts a step and sequence
    adapter: bool = False  # a second copy of every other prompt runs on the adapter meanwhile
    again: bool = False  # on the engine of the mix before, whose prefixes are cached


MIXES = (
    Mix("together, one batch", 64, 4096, 1024),
    Mix("together, again: every prefix cached", 64, 4096, 1024, again=True),
    Mix("together, chunks of 24 tokens", 16, 24, 1024),
    Mix("together, cache too small: preemption", 16, 256, 48),
    Mix("together, 4 guessed tokens", 8, 256, 1024, guesses=4),
    Mix("together, guesses, chunks, preemption", 12, 40, 48, guesses=6),
    Mix("together with an adapter", 24, 256, 1024, adapter=True),
    Mix("together, all of it", 16, 64, 64, guesses=4, adapter=True),
)
ADAPTER, RANK, SCALE = "noise", 8, 2.0
ADAPTED = ("q_proj", "v_proj")
END = 2  # <|im_end|>


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens of one greedy answer and the log-probability of each."""

    tokens: list[int]
    logprobs: list[float]


def prompts(tokenizer: EngineTokenizer, count: int) -> list[list[int]]:
    """Token ids of `count` prompts: questions in the chat format, beginnings of texts, then pieces of a manual."""
    chats = [
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in QUESTIONS
    ]
    texts = [text for pair in zip(chats, TEXTS, strict=True) for text in pair]
    manual = Prompts(smollm2.ensure())
    texts += [manual.take(number, 4 + 7 * number % 120) for number in range(count - len(texts))]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts[:count]]


def adapter_weights(directory: Path) -> dict[str, torch.Tensor]:
    """A and B of a LoRA adapter of random numbers, large enough to change what is said; names as in PEFT's files."""
    config = json.loads((directory / "config.json").read_text())
    width = config["hidden_size"]
    head = width // config["num_attention_heads"]
    rows = {"q_proj": config["num_attention_heads"] * head, "v_proj": config["num_key_value_heads"] * head}
    dice = torch.Generator().manual_seed(5)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name in ADAPTED:
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(RANK, width, generator=dice) / width**0.5
            weights[f"{prefix}.lora_B.weight"] = torch.randn(rows[name], RANK, generator=dice) * 0.05
    return weights


def write_adapter(model: Path, directory: Path) -> None:
    """The adapter as PEFT would save it."""
    save_file(adapter_weights(model), directory / "adapter_model.safetensors")
    card = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": int(SCALE * RANK)}
    (directory / "adapter_config.json").write_text(json.dumps({**card, "target_modules": list(ADAPTED)}))


def kept_reference(directory: Path, prompt_list: Sequence[list[int]], tokens: int, adapter: bool) -> list[Answer]:
    """`reference`, out of the cache where it was computed before."""
    facts = [prompt_list, tokens, adapter, torch.__version__, transformers.__version__, RANK, SCALE, smollm2.CONVERTER]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    file = smollm2.cache() / "bench" / f"greedy-{name}.json"
    if not file.is_file():
        answers = reference(directory, prompt_list, tokens, adapter)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps([asdict(answer) for answer in answers]))
        partial.replace(file)
    return [Answer(**answer) for answer in json.loads(file.read_text())]


@torch.inference_mode()
def reference(directory: Path, prompt_list: Sequence[list[int]], tokens: int, adapter: bool) -> list[Answer]:
    """What `transformers` answers in float32, one prompt at a time; on weights with the adapter merged, if asked."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    if adapter:
        parts = adapter_weights(directory)
        for name, a_RI in parts.items():
            if ".lora_A." in name:
                target = name.removeprefix("base_model.model.").replace(".lora_A", "")
                model.get_parameter(target).add_(SCALE * parts[name.replace("lora_A", "lora_B")] @ a_RI)
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


def build_core(directory: Path, mix: Mix, threads: int) -> EngineCore:
    """Our engine as a deployment with dtype Float32 and numerics Reproducible has it."""
    model = load(directory, torch.float32)
    if not isinstance(model.config, LlamaConfig):
        raise TypeError("SmolLM2 is a Llama")
    length = min(512, mix.num_blocks * 16)
    settings = ServerSettings(
        name="bench",
        namespace="default",
        model=Location(uri="pvc://models/smollm2", path=str(directory)),
        served_names=["smollm2"],
        dtype="Float32",
        numerics="Reproducible",
    )
    plan = plan_runner(model.config, torch.float32, torch.device("cpu"), settings, threads)
    runner = plan.build(
        dict(model.weights),
        num_blocks=mix.num_blocks,
        max_length=length,
        reload=lambda: load(directory, torch.float32).weights,
    )
    config = SchedulerConfig(mix.max_num_seqs, mix.max_tokens, length)
    tokenizer = EngineTokenizer.load(directory)
    return EngineCore(runner, config, tokenizer, frozenset({END}), speculative_tokens=mix.guesses)


@dataclass(slots=True)
class Run:
    """Answers of all prompts, those of the adapter (by the prompt's number), and what happened on the way."""

    answers: list[Answer]
    adapted: dict[int, Answer]
    preemptions: int = 0
    accepted: int = 0  # guessed tokens that were right


def ours(core: EngineCore, prompt_list: Sequence[list[int]], tokens: int, adapter: bool = False) -> Run:
    """What our engine answers to all prompts at once."""
    params = SamplingParams(max_tokens=tokens, temperature=0.0, logprobs=0)
    run = Run([Answer([], []) for _ in prompt_list], {})
    for number, prompt in enumerate(prompt_list):
        core.add(Request(str(number), prompt, params, 0))
        if adapter and number % 2 == 0:
            run.adapted[number] = Answer([], [])
            core.add(Request(f"{number} adapted", prompt, params, 0, adapter=ADAPTER))
    while core.has_work:
        output = core.step()
        run.preemptions += output.stats.preemptions
        run.accepted += output.stats.accepted_tokens
        for delta in output.deltas:
            number, _, adapted = delta.request_id.partition(" ")
            answer = run.adapted[int(number)] if adapted else run.answers[int(number)]
            for item in delta.tokens:
                answer.tokens.append(item.token)
                answer.logprobs.append(item.logprob or 0.0)
    core.check_books()
    return run


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
    expected = kept_reference(directory, prompt_list, arguments.tokens, adapter=False)
    expected_adapted = kept_reference(directory, prompt_list[::2], arguments.tokens, adapter=True)
    heads = f"{'equal':>10}{'adapter':>10}{'largest Δ log p':>18}{'preemptions':>13}{'guessed':>9}{'s':>8}"
    print(f"{'way to run':<42}{heads}")
    print(f"{'transformers, alone':<42}{'-':>10}{'-':>10}{'-':>18}{'-':>13}{'-':>9}{time.perf_counter() - begin:>8.1f}")
    rows: list[dict[str, object]] = []

    def report(name: str, run: Run, seconds: float) -> None:
        equal, largest = compare(expected, run.answers)
        wanted = [expected_adapted[number // 2] for number in run.adapted]
        adapted, adapted_largest = compare(wanted, list(run.adapted.values()))
        largest = max(largest, adapted_largest)
        row = {"way": name, "equal": equal, "adapterEqual": adapted, "adapterPrompts": len(wanted)}
        rows.append(
            {**row, "largestLogprobDifference": largest, "preemptions": run.preemptions, "guessed": run.accepted}
        )
        line = f"{name:<42}{equal:>6}/{len(expected):<3}{adapted:>6}/{len(wanted):<3}{largest:>18.1e}"
        print(f"{line}{run.preemptions:>13}{run.accepted:>9}{seconds:>8.1f}", flush=True)

    core = build_core(directory, Mix("alone", 1, 4096, 1024), arguments.threads)
    begin = time.perf_counter()
    alone = Run([], {})
    for prompt in prompt_list:
        alone.answers += ours(core, [prompt], arguments.tokens).answers
        core.forget_prefixes()
    report("alone", alone, time.perf_counter() - begin)
    with tempfile.TemporaryDirectory(prefix="adapter-") as folder:
        write_adapter(directory, Path(folder))
        for mix in MIXES:
            if not mix.again:
                core = build_core(directory, mix, arguments.threads)
                if mix.adapter:
                    core.add_adapter(ADAPTER, folder)
            begin = time.perf_counter()
            run = ours(core, prompt_list, arguments.tokens, mix.adapter)
            report(mix.name, run, time.perf_counter() - begin)
    equal = all(row["equal"] == len(expected) and row["adapterEqual"] == row["adapterPrompts"] for row in rows)
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

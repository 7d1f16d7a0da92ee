"""adapter: LoRA over float, int8 and NF4 weights of SmolLM2-135M on conversations, hot-loaded in both engines.

Rows (ROWS=Float,NF4): the kinds of base weights. Held-out loss before and after, tokens a second, peak memory of the
process with all its parts; then the adapter of row Float is loaded into our server and into vLLM while they run, and
the log-probabilities of what they write are compared with those of the merged model in `transformers`, in float32.
"""

import json
import math
import multiprocessing
import os
import resource
import shutil
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

from bench.peers import chatterbot, kubeformer, vllm_cpu
from bench.peers.server import Server, running
from bench.trainer.bars import Bar, Bench, table
from bench.trainer.jobs import finished, located
from examples import smollm2
from kubeformer.contract.job import Chat, Data, Lora, Model, Training

BASES: tuple[Literal["Float", "Int8", "NF4"], ...] = ("Float", "Int8", "NF4")
LENGTH, ROWS_A_STEP = 256, 8
STEPS, FEW_STEPS = 16, 6  # over float weights, and over others, where speed and memory are what is asked
NOTHING = 1e-12  # a learning rate that leaves float32 weights as they are
QUESTIONS = ("What is AI?", "Do you like music?", "Tell me a joke", "Who was Ada Lovelace?")
ANSWER = 12  # tokens


def run(bench: Bench) -> list[Bar]:
    """Train, measure, serve."""
    data = Data(source=located(chatterbot.write_rows(bench.work / "conversations.jsonl")), validation_percent=10)
    base, lines, bars = smollm2.ensure(), [], list[Bar]()
    heads = ("base weights", "steps", "held-out loss", "tokens/s", "peak GB", "checkpoint MB")
    if bench.wants("Float"):
        before = _job(bench.work / "before", base, data, "Float", steps=1, rate=NOTHING)["loss"]
        lines.append(("none trained", 0, before, None, None, None))
    for kind in BASES:
        if not bench.wants(kind):
            continue
        steps = STEPS if bench.long or kind == "Float" else FEW_STEPS
        found = _job(bench.work / kind, base, data, kind, steps=steps, rate=1e-3)
        bench.figures[kind] = found
        lines.append((kind, steps, *(found[key] for key in ("loss", "tokensPerSecond", "peakGB", "checkpointMB"))))
    print(table("SmolLM2-135M on conversations: LoRA of rank 16 in attention and MLP, bf16", heads, lines))
    if bench.wants("Float"):
        after = float(bench.figures["Float"]["loss"])  # type: ignore[index]
        bench.figures["lossBefore"] = before
        name, why = "SFT with LoRA lowers the held-out loss, %", f"{before:.3f} to {after:.3f} in {STEPS} steps"
        bars = [Bar(name, must=20.0, reach=30.0, figure=round(100 * (1 - after / before), 1), why=why)]
        bars += _served(bench, base, bench.work / "Float" / "model")
    return bars


def _job(
    directory: Path, base: Path, data: Data, kind: Literal["Float", "Int8", "NF4"], *, steps: int, rate: float
) -> dict[str, float]:
    """In a process of its own, whose peak memory is then the job's alone."""
    lora = Lora(rank=16, alpha=32.0, targets=("Attention", "MLP"), base_weights=kind)
    training = Training(
        epochs=None,
        steps=steps,
        batch_size=ROWS_A_STEP,
        learning_rate=rate,
        precision="BFloat16",
        objective_metric="validation/loss",
        objective_direction="Minimize",
    )
    model = Model(base=located(base), lora=lora)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train, directory, model, data, training).result()


def train(directory: Path, model: Model, data: Data, training: Training) -> dict[str, float]:
    """In the child: metrics of what was published, speed while training, peak memory."""
    found = finished(directory, task=Chat(sequence_length=LENGTH), model=model, data=data, training=training)
    checkpoint = next((directory / "checkpoints").glob("step-*"))
    seconds = json.loads((checkpoint / "state.json").read_text())["seconds"]
    steps = training.steps or 0
    return {
        "loss": found["validation/loss"],
        "tokensPerSecond": round(steps * ROWS_A_STEP * LENGTH / seconds, 1),  # places of packed rows
        "peakGB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "checkpointMB": round(sum(file.stat().st_size for file in checkpoint.iterdir()) / 1e6, 1),
        "jobSeconds": found["seconds"],
    }


def _served(bench: Bench, base: Path, published: Path) -> list[Bar]:
    """The adapter in our server and in vLLM, both loading it while they run."""
    folder = bench.work / "served"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder / "base", copy_function=os.link)  # clients may name adapters beside the model alone
    shutil.copytree(published / "adapter", folder / "adapter")
    ours = kubeformer.launch(folder / "base", folder, dtype="Float32")
    options = ("--dtype", "float32", "--enable-lora", "--enforce-eager")
    theirs = vllm_cpu.launch(folder / "base", tuned=True, options=options, name="LoRA")
    theirs = replace(theirs, environment={**theirs.environment, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"})
    bars, lines = [], []
    for name, launch, must, reach in (("our engine", ours, 1e-3, 1e-4), ("vLLM", theirs, 1e-2, 1e-3)):
        with running(launch, folder) as server:
            off, changed = _compare(server, folder / "adapter", published)
        lines.append((name, off, changed))
        bench.figures[f"logprobsOff {name}"] = off
        why = f"{changed} of {len(QUESTIONS)} answers are not the base's"
        figure = off if changed else None  # an adapter that changes nothing proves nothing
        bars.append(Bar(f"a LoRA adapter hot-loads in {name}: log-probabilities off", must, reach, figure, False, why))
    print(table("hot-loaded", ("engine", "largest difference of log-probabilities", "answers changed"), lines))
    return bars


def _compare(server: Server, adapter: Path, published: Path) -> tuple[float, int]:
    """Largest difference from the merged model, and how many answers the adapter changes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(published)
    merged = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32).eval()
    _post(server, "/v1/load_lora_adapter", {"lora_name": "chat", "lora_path": str(adapter)})
    off, changed = 0.0, 0
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        answers = {}
        for name in ("chat", server.launch.model):
            body = {"model": name, "prompt": tokens, "max_tokens": ANSWER, "temperature": 0, "logprobs": 0}
            answers[name] = _post(server, "/v1/completions", body | dict(server.launch.extra))["choices"][0]
        changed += answers["chat"]["text"] != answers[server.launch.model]["text"]
        found = answers["chat"]["logprobs"]
        with torch.inference_mode():
            ids = list(tokens)
            for piece, logprob in zip(found["tokens"], found["token_logprobs"], strict=True):
                expected = merged(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                best = int(expected.argmax())
                off = max(off, abs(float(expected[best]) - logprob))
                if tokenizer.decode([best]) != piece:
                    off = math.inf  # another token than the likeliest
                ids.append(best)
    return off, changed


def _post(server: Server, path: str, body: dict[str, object]) -> dict:  # type: ignore[type-arg]
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        text = answer.read().decode()
    return dict(json.loads(text)) if text.startswith("{") else {"text": text}  # vLLM answers a load with plain text

"""Models of 1M, 10M and 30M parameters, where what an engine adds to each step weighs more than the weights."""

from functools import partial
from pathlib import Path

from bench.engine import models
from bench.engine.bars import Bar, ratio_bar
from bench.engine.fleet import figures, fleet, rounds, table
from bench.engine.load import Measured, run_closed
from bench.peers import kubeformer, llama_cpp, transformers_serve, vllm_cpu
from bench.peers.server import Server

PROMPT, ANSWER = 256, 128
REPEATS = {1: 5, 16: 3}  # by streams
OURS = ["kubeformer bf16", "kubeformer int8"]
THEIRS = ["vLLM-CPU tuned", "vLLM-CPU default", "transformers bf16", "transformers bf16 batching"]
LLAMA = ["llama.cpp bf16", "llama.cpp Q8_0"]


def run(work: Path, long: bool) -> dict[str, object]:
    """All models, one fleet after another."""
    bars: list[Bar] = []
    all_rows: dict[str, object] = {}
    failures: dict[str, str] = {}
    for shape in models.TINY:
        rows, failed = measure(models.tiny(shape), work, long)
        failures |= {f"{shape.name}, {name}": text for name, text in failed.items()}
        for streams, found in rows.items():
            label = f"{shape.name}, {streams} stream{'s' if streams > 1 else ''}"
            all_rows[label] = found
            bars.append(ratio_bar(f"{label}: to vLLM-CPU and transformers", 1.0, 1.0, found, OURS, THEIRS))
            bars.append(ratio_bar(f"{label}: to llama.cpp", None, 1.0, found, OURS, LLAMA))
    return {"rows": all_rows, "bars": bars, "failures": failures}


def measure(model: Path, work: Path, long: bool) -> tuple[dict[int, dict[str, dict[str, object]]], dict[str, str]]:
    """Rows by number of streams, and what failed."""
    prompts = models.Prompts(model)
    launches = [
        partial(vllm_cpu.launch, model, tuned=True),
        partial(transformers_serve.launch, model, ANSWER, batching=False),
        partial(transformers_serve.launch, model, ANSWER, batching=True),
        partial(llama_cpp.launch, model, "bf16", models.folder(), slots=16),
        partial(llama_cpp.launch, model, "Q8_0", models.folder(), slots=16),
        partial(kubeformer.launch, model, work),
        partial(kubeformer.launch, model, work, quantization="Int8"),
    ]
    if long:
        launches.append(partial(vllm_cpu.launch, model, tuned=False))

    def job(server: Server, repeat: int, streams: int) -> Measured:
        count = max(3, streams)
        return run_closed(server, prompts.several(count * repeat, count, PROMPT), ANSWER, streams)

    print(f"{model.name}: {models.parameters(model):,} parameters", flush=True)
    rows: dict[int, dict[str, dict[str, object]]] = {}
    with fleet(launches, work) as found:
        rounds(found, list(found.servers), 1, lambda server, _: job(server, 20, 2))
        for streams, repeats in REPEATS.items():
            # One by one `transformers` takes minutes for sixteen; its batching row stands for it there.
            names = [name for name in found.servers if name != THEIRS[2 if streams > 1 else 3]]
            runs = rounds(found, names, repeats, partial(job, streams=streams))
            rows[streams] = {name: figures(items) for name, items in runs.items() if items}
            print(table(f"{model.name}, {streams} at once, 256 in, 128 out", rows[streams]), flush=True)
        return rows, dict(found.failures)

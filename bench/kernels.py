"""The engine's kernels alone: how much of this machine's memory bandwidth and arithmetic a decoding step reaches.

    python -m bench.kernels [--model DIRECTORY] [--threads N]

For each type of weight: one step of one stream and of sixteen, each with 256 tokens of context, no server and no
sampler; tokens a second, bytes of weights and cache read a second, and their share of what a plain read of memory
reaches in the same process. Prints one JSON line at the end.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from examples import smollm2
from kubeformer_runtime.engine.batch import build_batch
from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.cpu_runner import CpuRunner, Quantization
from kubeformer_runtime.engine.plan import Scheduled
from kubeformer_runtime.engine.resources import available_cpus, has_bfloat16
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.sequence import Sequence
from kubeformer_runtime.kernels.binding import measured_bandwidth
from kubeformer_runtime.kernels.library import choose_variant, cpu_flags, load_library
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.weights import load

CONTEXT, STEPS, BLOCKS = 256, 40, 512
KINDS: tuple[tuple[str, torch.dtype, Quantization], ...] = (
    ("float32", torch.float32, "None"),
    ("bfloat16", torch.bfloat16, "None"),
    ("int8", torch.bfloat16, "Int8"),
    ("int4", torch.bfloat16, "Int4"),
)


def runner_of(directory: Path, dtype: torch.dtype, quantization: Quantization, threads: int) -> CpuRunner:
    """A directory's model under the kernels."""
    loaded = load(directory, dtype)
    if not isinstance(loaded.config, LlamaConfig):
        raise SystemExit(f"{directory} is no decoder")
    return CpuRunner(
        loaded.config,
        loaded.weights,
        num_blocks=BLOCKS,
        max_length=2 * CONTEXT,
        quantization=quantization,
        threads=threads,
    )


def step_seconds(runner: CpuRunner, streams: int) -> tuple[float, float]:
    """Best and median time of a decoding step."""
    blocks = BlockManager(BLOCKS, runner.block_size)
    items = []
    for number in range(streams):
        seq = Sequence(number, [1 + number] * (CONTEXT + 1), SamplingParams())
        if not blocks.allocate(seq, CONTEXT + 1):
            raise SystemExit("the cache is too small")
        items.append(Scheduled(seq, CONTEXT, 1))
    batch = build_batch(items, runner.block_size, runner.dtype)
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        runner.execute(batch)
        times.append(time.perf_counter() - start)
    times.sort()
    return times[0], times[len(times) // 2]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=None, help="a Hugging Face directory; SmolLM2-135M without it")
    parser.add_argument("--threads", type=int, default=available_cpus())
    arguments = parser.parse_args()
    directory = arguments.model or smollm2.ensure()
    library = load_library()
    bandwidth = measured_bandwidth(library, threads=arguments.threads)
    result: dict[str, Any] = {
        "variant": choose_variant(cpu_flags()).name,
        "threads": arguments.threads,
        "bandwidth_gb_s": bandwidth / 1e9,
    }
    print(f"{result['variant']}, {arguments.threads} threads, memory {bandwidth / 1e9:.1f} GB/s")
    for name, dtype, quantization in KINDS:
        if dtype == torch.bfloat16 and quantization == "None" and not has_bfloat16():
            continue
        runner = runner_of(directory, dtype, quantization, arguments.threads)
        for streams in (1, 16):
            best, median = step_seconds(runner, streams)
            read = runner.bytes_per_token(0) + streams * (runner.bytes_per_token(CONTEXT) - runner.bytes_per_token(0))
            row = {
                "tokens_s": streams / median,
                "best_tokens_s": streams / best,
                "gb_s": read / median / 1e9,
                "share_of_bandwidth": read / median / bandwidth,
            }
            result[f"{name}_{streams}"] = row
            print(
                f"{name:9} {streams:2} streams: {row['tokens_s']:7.0f} tokens/s (best {row['best_tokens_s']:.0f}), "
                f"{row['gb_s']:5.1f} GB/s, {row['share_of_bandwidth']:4.0%} of the memory's"
            )
    print(json.dumps(result))


if __name__ == "__main__":
    main()

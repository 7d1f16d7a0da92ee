"""SmolLM2-135M: one stream, sixteen streams, arrivals at random, shared prefixes. One fleet serves all of these parts.

Two tables each: bf16 against bf16, and best against best (our quantised weights, admitted by their perplexity).
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.engine import models
from bench.engine.bandwidth import bytes_per_token, probe
from bench.engine.bars import Bar, ratio_bar, value
from bench.engine.fleet import COLUMNS, Fleet, figures, fleet, rounds, table
from bench.engine.load import Measured, open_session, percentile, run_closed, run_open, stream
from bench.peers import kubeformer, llama_cpp, transformers_serve, vllm_cpu
from bench.peers.server import Launch, PeerError, Server
from examples import smollm2

PROMPT, ANSWER, STREAMS = 256, 128, 16
PREFIXES = (64, 128, 256, 500)
SUFFIX, PREFIX_REQUESTS = 12, 6
TUNED, DEFAULT = "vLLM-CPU tuned", "vLLM-CPU default"
BF16, INT8, SPEC, SAME = "kubeformer bf16", "kubeformer int8", "kubeformer int8 ngram4", "kubeformer bf16 reproducible"
HF, HF_BATCHING = "transformers bf16", "transformers bf16 batching"
LLAMA, Q8 = "llama.cpp bf16", "llama.cpp Q8_0"
BF16_ROWS = [BF16, SAME, TUNED, DEFAULT, HF, HF_BATCHING, LLAMA]
OPEN_ROWS = [BF16, INT8, TUNED, Q8]
OPEN_SHARE = 0.7  # of what tuned vLLM does with sixteen streams: everyone gets the same arrivals
PERPLEXITY_LIMIT = 0.005
PERPLEXITY_TEXTS, PERPLEXITY_TOKENS = 24, 500
SHORT = 4  # tokens of an answer of which only the first counts
PARTS = ("single", "batch", "prefix")


def launches(model: Path, work: Path, long: bool) -> dict[str, Callable[[], Launch]]:
    """Of all rows, by name. vLLM first: it takes longest, and the others stand still meanwhile."""
    files = models.folder()
    rows: dict[str, Callable[[], Launch]] = {
        TUNED: partial(vllm_cpu.launch, model, tuned=True),
        DEFAULT: partial(vllm_cpu.launch, model, tuned=False),
        HF: partial(transformers_serve.launch, model, ANSWER, batching=False),
        HF_BATCHING: partial(transformers_serve.launch, model, ANSWER, batching=True),
        LLAMA: partial(llama_cpp.launch, model, "bf16", files, slots=STREAMS),
        Q8: partial(llama_cpp.launch, model, "Q8_0", files, slots=STREAMS),
        BF16: partial(kubeformer.launch, model, work),
        INT8: partial(kubeformer.launch, model, work, quantization="Int8"),
        SPEC: partial(kubeformer.launch, model, work, quantization="Int8", speculative_tokens=4),
        SAME: partial(kubeformer.launch, model, work, numerics="Reproducible"),
    }
    if long:
        guess = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}'
        options = ("--speculative-config", guess)
        rows[f"{TUNED} ngram"] = partial(vllm_cpu.launch, model, tuned=True, options=options, name="ngram")
    return rows


def run(parts: Sequence[str], work: Path, long: bool, only: Sequence[str] = ()) -> dict[str, dict[str, object]]:
    """The asked-for parts of PARTS, each with its rows and bars. `only`: beginnings of rows' names; empty for all."""
    model = smollm2.ensure()
    prompts = models.Prompts(model)
    results: dict[str, dict[str, object]] = {}
    rows = launches(model, work, long)
    wanted = [make for name, make in rows.items() if not only or name.startswith(tuple(only))]
    with fleet(wanted, work) as found:
        settings = {name: server.launch.settings for name, server in found.servers.items()}
        ready = {name: round(server.ready_seconds, 1) for name, server in found.servers.items()}
        if {"single", "batch"} & set(parts):
            _warm(found, prompts)
        quality = _perplexity(found, prompts) if {"single", "batch"} & set(parts) else {}
        if "single" in parts:
            results["single"] = _single(found, model, prompts, quality, 9 if long else 5)
        if "batch" in parts:
            results["batch"] = _batch(found, prompts, quality, 5 if long else 3)
        if "prefix" in parts:
            results["prefix"] = _prefix(found, prompts, 5 if long else 3)
        for result in results.values():
            result |= {"settings": settings, "readySeconds": ready, "failures": dict(found.failures)}
    return results


def _warm(found: Fleet, prompts: models.Prompts) -> None:
    """Two streams' worth of everything once, uncounted."""
    rounds(
        found, list(found.servers), 1, lambda server, _: run_closed(server, prompts.several(420, 2, PROMPT), ANSWER, 2)
    )


def _single(
    found: Fleet, model: Path, prompts: models.Prompts, quality: Mapping[str, float], repeats: int
) -> dict[str, object]:
    bandwidths = [probe(2)]
    runs = rounds(
        found,
        [name for name in found.servers if name != HF_BATCHING],
        repeats,
        lambda server, repeat: run_closed(server, [prompts.take(repeat, PROMPT)], ANSWER, 1),
    )
    bandwidths.append(probe(2))
    bandwidth = max(bandwidths)
    rows = {name: figures(items) for name, items in runs.items() if items}
    shares = {}
    for name, bits in ((BF16, 16.0), (INT8, 8.0), (SAME, 16.0), (TUNED, 16.0), (LLAMA, 16.0), (Q8, 8.5)):
        if (rate := value(rows, name, "decodePerSecond")) is not None:
            needed = bytes_per_token(model, bits, PROMPT + ANSWER // 2)
            shares[name] = rows[name]["bandwidthPercent"] = round(100 * rate * needed / bandwidth, 1)
    show = {"bandwidthPercent": "% of bw"}
    _tables("one stream, 256 in, 128 out", rows, show)
    print(f"memory read with two threads: {bandwidth / 1e9:.1f} GB/s (before and after: {bandwidths})")
    ours = _admitted(quality)
    bars = [
        ratio_bar("one stream, bf16, to tuned vLLM-CPU", 1.2, 2.0, rows, [BF16], [TUNED]),
        ratio_bar("one stream, best, to tuned vLLM-CPU", 2.0, 4.0, rows, ours, [TUNED]),
        ratio_bar("one stream, best, to llama.cpp Q8_0", 0.8, 1.2, rows, ours, [Q8]),
        Bar("one stream, bf16, % of bandwidth", 40.0, 75.0, shares.get(BF16)),
        Bar("one stream, int8, % of bandwidth", 40.0, 75.0, shares.get(INT8)),
        ratio_bar("one stream, Reproducible to Fast, bf16", 0.5, 0.8, rows, [SAME], [BF16]),
        Bar("int8, perplexity above bf16, %", 0.5, 0.2, _percent(quality, INT8), higher=False),
    ]
    return {"rows": rows, "bars": bars, "bandwidth": bandwidth, "perplexity": dict(quality)}


def _batch(found: Fleet, prompts: models.Prompts, quality: Mapping[str, float], repeats: int) -> dict[str, object]:
    def job(server: Server, repeat: int) -> Measured:
        return run_closed(server, prompts.several(40 + STREAMS * repeat, STREAMS, PROMPT), ANSWER, STREAMS)

    runs = rounds(found, [name for name in found.servers if name not in (HF, SAME)], repeats, job)
    rows = {name: figures(items) for name, items in runs.items() if items}
    _tables(f"{STREAMS} streams, 256 in, 128 out", rows, {})
    bars = []
    ours = _admitted(quality)
    for label, must, reach, names in (("bf16", 1.1, 1.6, [BF16]), ("best", 1.3, 2.0, ours)):
        bar = ratio_bar(f"16 streams, {label}, to tuned vLLM-CPU", must, reach, rows, names, [TUNED])
        bars.append(bar)
        row = max(names, key=lambda name: value(rows, name, "tokensPerSecond") or 0.0)
        title = f"16 streams, {label}, p99 between tokens: tuned vLLM-CPU's to ours"
        bars.append(ratio_bar(title, 1.0, 1.0, rows, [row], [TUNED], "gapP99Ms"))
    capacity = value(rows, TUNED, "tokensPerSecond") or value(rows, BF16, "tokensPerSecond") or 100.0
    rate = OPEN_SHARE * capacity / ANSWER
    opened = rounds(
        found,
        OPEN_ROWS,
        2,
        lambda server, repeat: run_open(server, prompts.several(140 + 24 * repeat, 24, PROMPT), ANSWER, rate, repeat),
    )
    open_rows = {name: figures(items) for name, items in opened.items() if items}
    columns = {"firstTokenMs": "TTFT p50", "firstTokenP99Ms": "TTFT p99", "gapP50Ms": "gap p50", "gapP99Ms": "gap p99"}
    print(table(f"arrivals at random, {rate:.2f} requests/s, 256 in, 128 out", open_rows, columns))
    return {"rows": rows, "bars": bars, "openLoop": open_rows, "requestsPerSecond": round(rate, 2)}


def _prefix(found: Fleet, prompts: models.Prompts, repeats: int) -> dict[str, object]:
    names = [BF16, INT8, TUNED, DEFAULT, Q8]
    rows: dict[str, dict[str, object]] = {}
    bars = []
    for position, length in enumerate(PREFIXES):

        def job(server: Server, repeat: int, length: int = length, position: int = position) -> float:
            shared = prompts.take(16 * position + repeat, length)
            ends = prompts.several(1000 + 100 * position + 10 * repeat, PREFIX_REQUESTS + 1, SUFFIX)
            return asyncio.run(_shared(server, [f"{shared}\n{end}" for end in ends]))

        runs = rounds(found, names, repeats, job)
        for name, items in runs.items():
            if items:
                rows.setdefault(name, {})[f"ttft{length}Ms"] = round(1e3 * percentile(items, 0.5), 1)
        title = f"shared prefix of {length} tokens, TTFT: tuned vLLM-CPU's to ours"
        bars.append(ratio_bar(title, 2.0, 4.0, rows, [BF16, INT8], [TUNED], f"ttft{length}Ms"))
    columns = {f"ttft{length}Ms": f"{length}, ms" for length in PREFIXES}
    print(table(f"time to first token after a shared prefix and {SUFFIX} tokens of one's own", rows, columns))
    return {"rows": rows, "bars": bars}


async def _shared(server: Server, texts: Sequence[str]) -> float:
    """Median seconds to the first token of all but the first prompt, one at a time."""
    async with open_session() as session:
        firsts = [(await stream(session, server, text, SHORT)).first for text in texts]
    return percentile(firsts[1:], 0.5)


def _perplexity(found: Fleet, prompts: models.Prompts) -> dict[str, float]:
    """Of our rows on English text, through the API's own prompt_logprobs."""
    names = [name for name in (BF16, INT8) if name in found.servers]
    values = rounds(found, names, 1, lambda server, _: asyncio.run(_score(server, prompts)))
    return {name: round(items[0], 4) for name, items in values.items() if items}


async def _score(server: Server, prompts: models.Prompts) -> float:
    total, count = 0.0, 0
    async with open_session() as session:
        for number in range(PERPLEXITY_TEXTS):
            text = prompts.take(8 * number + 3, PERPLEXITY_TOKENS)  # none begins like a prompt that is timed
            body = {"model": server.launch.model, "prompt": text, "max_tokens": 1, "prompt_logprobs": 0}
            async with session.post(server.url + "/v1/completions", json=body) as answer:
                document = await answer.json()
                if answer.status != 200:
                    raise PeerError(f"{server.launch.name}: {document}")
            for entry in document["choices"][0]["prompt_logprobs"]:
                if entry:
                    total -= next(iter(entry.values()))["logprob"]
                    count += 1
    return math.exp(total / count)


def _percent(quality: Mapping[str, float], name: str) -> float | None:
    if name not in quality or BF16 not in quality:
        return None
    return round(100 * (quality[name] / quality[BF16] - 1), 3)


def _admitted(quality: Mapping[str, float]) -> list[str]:
    """Rows that "best" may choose from: int8 only where its perplexity is known and near enough."""
    above = _percent(quality, INT8)
    return [BF16, INT8, SPEC] if above is not None and above <= 100 * PERPLEXITY_LIMIT else [BF16]


def _tables(title: str, rows: Mapping[str, Mapping[str, object]], more: Mapping[str, str]) -> None:
    columns = {**COLUMNS, **more}
    print(table(f"bf16 against bf16: {title}", {name: row for name, row in rows.items() if name in BF16_ROWS}, columns))
    best = {name: row for name, row in rows.items() if name not in (SAME, DEFAULT, LLAMA)}
    print(table(f"best against best: {title}", best, columns), flush=True)

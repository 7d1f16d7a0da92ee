"""How fast this machine reads memory, and which share of that an engine's decoding uses.

A decoded token needs every weight once and the keys and values of its context, so bandwidth divided by these bytes is
the most tokens per second that one stream can have without guessing ahead.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch

from bench.engine.models import parameters

BUFFER_BYTES = 2**30  # far beyond any cache
REPEATS = 5


def probe(threads: int) -> float:
    """Bytes per second: the best of several ways to read a buffer once with `threads` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        buffer = torch.from_numpy(np.ones(BUFFER_BYTES // 4, dtype=np.float32))
        whole = buffer.view(torch.int64)
        matrix, vector = buffer.view(-1, 4096), torch.ones(4096)
        ways = (lambda: buffer.sum(), lambda: whole.max(), lambda: matrix @ vector)
        best = 0.0
        for way in ways:
            for _ in range(REPEATS):
                begin = time.perf_counter()
                way()
                best = max(best, BUFFER_BYTES / (time.perf_counter() - begin))
        return best
    finally:
        torch.set_num_threads(before)


def bytes_per_token(model: Path, weight_bits: float, context: int, cache_bytes: int = 2) -> float:
    """What decoding one token has to read: all weights, and keys and values of `context` tokens."""
    config = json.loads((model / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    cache = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * cache_bytes * context
    return float(parameters(model) * weight_bits / 8 + cache)

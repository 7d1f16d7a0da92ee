"""Perplexity of a text under a runner: the gate that quantised weights have to pass.

e to the mean negative log-likelihood of every token but the first of each text, lower is better. Each text is
computed in one step, so it has to fit the runner's cache.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from kubeformer_runtime.engine.batch import build_batch
from kubeformer_runtime.engine.core import ModelRunner
from kubeformer_runtime.engine.plan import Scheduled
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.sequence import Sequence


def perplexity(runner: ModelRunner, texts: Iterable[list[int]]) -> float:
    """Of texts as token ids, at least two each."""
    total, count = 0.0, 0
    for tokens in texts:
        logprob_T = token_logprobs(runner, tokens)
        total -= float(logprob_T.double().sum())
        count += len(logprob_T)
    return math.exp(total / count)


def token_logprobs(runner: ModelRunner, tokens: list[int]) -> Tensor:
    """Log-probability of each token but the first, given those before it: float32 (T - 1,)."""
    seq = Sequence(0, tokens, SamplingParams(prompt_logprobs=0))
    needed = -(-len(tokens) // runner.block_size)
    if needed > runner.num_blocks:
        raise ValueError(f"a text has {len(tokens)} tokens, the cache holds {runner.num_blocks * runner.block_size}")
    seq.block_table = list(range(needed))
    logit_TV = runner.execute(
        build_batch([Scheduled(seq, 0, len(tokens))], runner.block_size, runner.dtype, runner.device)
    )
    return torch.log_softmax(logit_TV[:-1], -1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]

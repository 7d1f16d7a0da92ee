"""How many rows go through the network at once: as many as fit into memory, and few enough to stay in step.

Batches larger than that are split into passes whose gradients are added up; the result is the same.
"""

from kubeformer_runtime.model.config import LlamaConfig, ModelConfig

BYTES_PER_NUMBER = 4
STATE_COPIES = 6  # weights, gradients, two moments, the best weights, one to write from
SHARE_OF_MEMORY = 0.5  # of what is left; the allocator and the rest of the process need room too
PASS_OPERATIONS_CPU = 5e11  # a few seconds: ranks wait for each other after each pass, and report


def rows_per_pass(config: ModelConfig, parameters: int, length: int, memory_bytes: int, on_cpu: bool) -> int:
    """Rows of `length` tokens that one forward and backward pass takes: a power of two, at least one.

    The estimate of activations per token and layer counts what autograd keeps: about 16 vectors of the model's
    width, 4 of the MLP's, and for a language model three copies of the logits.
    """
    rows = _room(parameters, memory_bytes) / (BYTES_PER_NUMBER * _numbers(config) * length)
    if on_cpu:
        rows = min(rows, PASS_OPERATIONS_CPU / (6 * parameters * length))
    return 1 << max(0, int(rows).bit_length() - 1)


def fits(config: ModelConfig, parameters: int, length: int, memory_bytes: int) -> bool:
    """Whether the activations of one row fit; else they are recomputed (activation checkpointing)."""
    return BYTES_PER_NUMBER * _numbers(config) * length <= _room(parameters, memory_bytes)


def _numbers(config: ModelConfig) -> int:
    """Of activations, for each token."""
    numbers = config.layers * (16 * config.width + 4 * config.mlp_width) + 4 * config.width
    return numbers + 3 * config.vocabulary_size if isinstance(config, LlamaConfig) else numbers


def _room(parameters: int, memory_bytes: int) -> float:
    """Bytes for activations."""
    return SHARE_OF_MEMORY * max(0.0, memory_bytes - STATE_COPIES * BYTES_PER_NUMBER * parameters)

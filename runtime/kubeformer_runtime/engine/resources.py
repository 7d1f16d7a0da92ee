"""What this container gives an engine: cores, memory, number formats. Reads /proc and the cgroup, nothing else."""

import os
from pathlib import Path

import torch

from kubeformer_runtime.model.errors import ModelError

MEBIBYTE = 1 << 20
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "sve_bf16", "bf16"})  # x86 and Arm, as /proc/cpuinfo has them
UNLIMITED_SHARE = 0.25  # of the free memory, where nothing limits the container
LIMITED_SHARE = 0.8  # of what a limit leaves after weights and process
PROCESS_BYTES = 700 * MEBIBYTE  # Python, PyTorch, activations


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use: its affinity, or less where the container has a CPU limit; at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = _read(cgroup / "cpu.max").split() or [
        _read(cgroup / "cpu/cpu.cfs_quota_us"),
        _read(cgroup / "cpu/cpu.cfs_period_us"),
    ]
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the container may use; None: as much as the machine has."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        value = _read(cgroup / name)
        if value.isdigit() and int(value) < 1 << 60:
            return int(value)
    return None


def free_memory() -> int:
    """Bytes the machine could give now."""
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1024 * MEBIBYTE


def has_bfloat16(cpuinfo: str | None = None) -> bool:
    """Whether this CPU multiplies bfloat16 by itself; without that it is far slower than float32."""
    text = _read(Path("/proc/cpuinfo")) if cpuinfo is None else cpuinfo
    return any(
        not BF16_FLAGS.isdisjoint(line.split()) for line in text.splitlines() if line.startswith(("flags", "Feat"))
    )


def choose_dtype(wanted: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to compute in. Auto never lowers the precision that the weights are stored in.

    Half-precision weights stay so where the device is good at it, else become float32.
    """
    named = {"Float32": torch.float32, "BFloat16": torch.bfloat16, "Float16": torch.float16}
    if wanted in named:
        return named[wanted]
    if stored not in (torch.bfloat16, torch.float16):
        return torch.float32
    if device.type == "cuda":
        return stored
    return torch.bfloat16 if stored == torch.bfloat16 and has_bfloat16() else torch.float32


def choose_num_blocks(
    block_bytes: int,
    *,
    max_model_len: int,
    max_num_seqs: int,
    megabytes: int | None,
    budget: int,
    block_size: int = 16,
) -> int:
    """How many blocks the KV cache gets: `megabytes` where given, else what fits `budget` bytes, never more than
    `max_num_seqs` full sequences need. `block_bytes`: of a block over all layers.

    Raises:
        ModelError: not even one sequence of full length fits.
    """
    a_sequence = -(-max_model_len // block_size)
    blocks = (budget if megabytes is None else megabytes * MEBIBYTE) // block_bytes
    if blocks < a_sequence:
        need = -(-a_sequence * block_bytes // MEBIBYTE)
        raise ModelError(
            f"a sequence of {max_model_len} tokens needs {need} MiB of KV cache, but there are "
            f"{max(blocks, 0) * block_bytes // MEBIBYTE} MiB; raise the memory limit or lower engine.maxModelLength"
        )
    return min(blocks, a_sequence * max_num_seqs)


def kv_cache_budget(weight_bytes: int, device: torch.device) -> int:
    """Bytes for the KV cache after weights and process."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * LIMITED_SHARE)
    limit = memory_limit()
    if limit is None:
        return int(free_memory() * UNLIMITED_SHARE)
    return int((limit - weight_bytes - PROCESS_BYTES) * LIMITED_SHARE)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

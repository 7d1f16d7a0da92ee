"""What a container gives: cores and memory from its cgroup, number formats from its CPU, blocks from both."""

import os
from pathlib import Path

import pytest
import torch

from kubeformer_runtime.engine.llama_runner import LlamaRunner
from kubeformer_runtime.engine.resources import (
    MEBIBYTE,
    available_cpus,
    choose_dtype,
    choose_num_blocks,
    has_bfloat16,
    memory_limit,
)
from kubeformer_runtime.model.errors import ModelError
from tests.unit.engine.builders import tiny_config

CPU = torch.device("cpu")
CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", CORES), ("9900000 100000", CORES), (None, CORES)],
)
def test_cores_are_those_of_the_cpu_limit(tmp_path: Path, quota: str | None, cores: int) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert available_cpus(tmp_path) == cores


def test_older_cgroups_are_understood_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "memory").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{512 * MEBIBYTE}\n")
    assert available_cpus(tmp_path) == 1
    assert memory_limit(tmp_path) == 512 * MEBIBYTE


@pytest.mark.parametrize(("content", "limit"), [("max", None), (str(1 << 30), 1 << 30), (str((1 << 63) - 4096), None)])
def test_no_memory_limit_is_none(tmp_path: Path, content: str, limit: int | None) -> None:
    (tmp_path / "memory.max").write_text(content)
    assert memory_limit(tmp_path) == limit


def test_bfloat16_is_read_from_the_cpus_flags() -> None:
    assert has_bfloat16("flags\t\t: fpu avx512f avx512_bf16\n")
    assert has_bfloat16("Features\t: fp asimd bf16\n")
    assert not has_bfloat16("flags\t\t: fpu avx2\nmodel name\t: bf16 machine\n")


def test_auto_never_lowers_the_precision_of_the_weights() -> None:
    assert choose_dtype("Auto", torch.float32, CPU) == torch.float32
    assert choose_dtype("Auto", torch.float16, CPU) == torch.float32
    assert choose_dtype("Auto", torch.bfloat16, CPU) == (torch.bfloat16 if has_bfloat16() else torch.float32)
    assert choose_dtype("Auto", torch.float16, torch.device("cuda")) == torch.float16
    assert choose_dtype("BFloat16", torch.float32, CPU) == torch.bfloat16


BLOCK_BYTES = LlamaRunner.block_bytes(tiny_config(), torch.float32)


def blocks(**changes: object) -> int:
    fields = {"max_model_len": 100, "max_num_seqs": 4, "megabytes": None, "budget": 1 << 30, **changes}
    return choose_num_blocks(BLOCK_BYTES, **fields)  # type: ignore[arg-type]


def test_blocks_fill_the_budget_but_are_never_more_than_all_sequences_need() -> None:
    assert blocks() == 4 * 7  # 100 tokens are seven blocks of 16
    block = BLOCK_BYTES
    assert block == 2 * 2 * 16 * 2 * 8 * 4  # layers, keys and values, tokens, key-value heads, width, bytes
    assert blocks(budget=9 * block + 1) == 9
    assert blocks(megabytes=1, max_num_seqs=64) == MEBIBYTE // block


def test_a_cache_that_holds_no_whole_sequence_says_what_it_needs() -> None:
    with pytest.raises(ModelError, match=r"100 tokens needs 1 MiB.*maxModelLength"):
        blocks(budget=1000)

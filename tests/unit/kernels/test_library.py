"""The right library for a CPU, compiled once; without a compiler a sentence, and PyTorch computes."""

import logging
import os
from pathlib import Path

import pytest
import torch

from kubeformer.contract.base import Location
from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.engine import runners
from kubeformer_runtime.engine.runners import plan_runner
from kubeformer_runtime.kernels import library
from kubeformer_runtime.kernels.library import (
    VARIANTS,
    LibraryUnavailableError,
    choose_variant,
    compile_library,
    compiled,
    cpu_flags,
    find_compiler,
)
from kubeformer_runtime.model.errors import ModelError
from tests.unit.engine.builders import tiny_config

ZEN4 = library.V4 | {"avx512_bf16", "avx512_vnni"}


def test_the_best_variant_that_the_cpu_has_is_taken() -> None:
    assert choose_variant(ZEN4, "x86_64").name == "avx512-bf16"
    assert choose_variant(ZEN4 - {"avx512_bf16"}, "x86_64").name == "avx512-vnni"
    assert choose_variant(ZEN4 - {"avx512_bf16", "avx512_vnni"}, "x86_64").name == "avx512"
    assert choose_variant(ZEN4 - {"avx512f"}, "x86_64").name == "avx2"
    assert choose_variant(frozenset({"sse2"}), "x86_64").name == "portable"
    assert choose_variant(frozenset({"asimd"}), "aarch64").name == "portable"


def test_flags_are_read_from_cpuinfo() -> None:
    assert cpu_flags("processor : 0\nflags\t\t: fpu avx2\n\nprocessor : 1\nflags : other\n") == {"fpu", "avx2"}
    assert cpu_flags("nothing") == frozenset()


def compiler_that(does: str, path: Path) -> Path:
    """A compiler in a directory of its own: says its version, else runs `does`; $out is where the library goes."""
    path.mkdir()
    (path / "g++").write_text(
        '#!/bin/sh\ncase "$*" in *--version*) echo g++ 99; exit 0;; esac\nfor out; do :; done\n' + does + "\n"
    )
    (path / "g++").chmod(0o755)
    return path


def test_a_library_is_compiled_once_and_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_ = compiler_that(f'echo built >> {tmp_path}/log; echo library > "$out"', tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.delenv("CXX", raising=False)
    first = compiled(VARIANTS[-1], tmp_path / "cache")
    assert compiled(VARIANTS[-1], tmp_path / "cache") == first
    assert compiled(VARIANTS[0], tmp_path / "cache").parent != first.parent
    assert first.read_text() == "library\n"
    assert (tmp_path / "log").read_text() == "built\n" * 2
    assert [path.name for path in first.parent.iterdir()] == ["kernels-portable.so"]


def test_a_compiler_that_fails_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    bin_ = compiler_that("echo no space left >&2; exit 3", tmp_path / "bin")
    path = tmp_path / "cache" / "x" / "kernels.so"
    with pytest.raises(LibraryUnavailableError, match="code 3: no space left"):
        compile_library(str(bin_ / "g++"), VARIANTS[-1], path)
    assert list(path.parent.iterdir()) == []


def test_without_a_compiler_torch_computes_and_the_log_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(LibraryUnavailableError, match="install a compiler"):
        find_compiler()

    def nothing() -> None:
        find_compiler()

    monkeypatch.setattr(runners, "load_library", nothing)
    settings = ServerSettings(
        name="m", namespace="default", model=Location(uri="pvc://m/m", path="/m"), served_names=["m"]
    )
    cpu = torch.device("cpu")
    with caplog.at_level(logging.WARNING):
        plan = plan_runner(tiny_config(), torch.float32, cpu, settings, 1)
    assert plan.obstacle is not None
    assert "install a compiler" in caplog.text
    with pytest.raises(ModelError, match=r"engine\.quantization is Int8.*install a compiler"):
        plan_runner(tiny_config(), torch.float32, cpu, settings.model_copy(update={"quantization": "Int8"}), 1)


def test_every_source_belongs_to_the_library() -> None:
    files = {path for path in library.SOURCES.rglob("*") if path.is_file()}
    assert {*library.sources(), *library.sources(library.TRAINING)} == files

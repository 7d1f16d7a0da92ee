"""Where the compiled kernels come from: beside the sources (an image brings them), the cache, or the compiler.

The same sources are compiled for several instruction sets (`VARIANTS`); the best one that the CPU has is taken. A
compiled library lies in `<cache>/kernels/<hash of sources, flags and compiler>/`, put there by one rename, so that
any number of processes may build at the same time. `python -m kubeformer_runtime.kernels.library DIRECTORY` compiles
every variant for an image.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
ENGINE = SOURCES / "engine.cpp"
TRAINING = SOURCES / "training" / "training.cpp"
PREBUILT = Path(__file__).parent / "prebuilt"
FLAGS = (
    *("-O3", "-std=gnu++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
    *("-shared", "-fPIC", "-pthread"),
)


class LibraryUnavailableError(RuntimeError):
    """There are no kernels for this machine; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compile the sources, and the CPU flags (of /proc/cpuinfo) that it needs."""

    name: str
    needs: frozenset[str]
    flags: tuple[str, ...]


V3 = frozenset({"avx2", "fma", "bmi2", "f16c", "movbe"})
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
VARIANTS = (  # the best first
    Variant("avx512-bf16", V4 | {"avx512_bf16", "avx512_vnni"}, ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni")),
    Variant("avx512-vnni", V4 | {"avx512_vnni"}, ("-march=x86-64-v4", "-mavx512vnni")),
    Variant("avx512", V4, ("-march=x86-64-v4",)),
    Variant("avx2", V3, ("-march=x86-64-v3",)),
    Variant("portable", frozenset(), ()),
)


def cpu_flags(cpuinfo: str | None = None) -> frozenset[str]:
    """What /proc/cpuinfo says the first CPU can do."""
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text()
        except OSError:
            cpuinfo = ""
    for line in cpuinfo.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def choose_variant(flags: frozenset[str], machine: str | None = None) -> Variant:
    """The best variant for a CPU with these flags."""
    if (machine or platform.machine()) != "x86_64":
        return VARIANTS[-1]
    return next(variant for variant in VARIANTS if variant.needs <= flags)


@cache
def load_library(variant: str | None = None, program: Path = ENGINE) -> ctypes.CDLL:
    """The library of a variant by name; None: the best for this CPU. Compiling takes some ten seconds, once.

    `program` is ENGINE or TRAINING; the latter calls functions of PyTorch's OpenMP, so import torch before.

    Raises:
        LibraryUnavailableError: no library, no compiler, or a compiler that fails.
    """
    chosen = choose_variant(cpu_flags())
    if variant is not None:
        chosen = next(item for item in VARIANTS if item.name == variant)
    path = PREBUILT / file_name(chosen, program)
    if not path.is_file():
        path = compiled(chosen, cache_directory(), program)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryUnavailableError(
            f"{path} cannot be loaded ({error}); delete it to have it compiled again"
        ) from None


def file_name(variant: Variant, program: Path = ENGINE) -> str:
    """Of a compiled variant."""
    return f"{'kernels' if program == ENGINE else program.stem}-{variant.name}.so"


def cache_directory() -> Path:
    """Where everything lies that can be made again."""
    return Path(os.environ.get("KUBEFORMER_CACHE") or Path.home() / ".cache" / "kubeformer") / "kernels"


def sources(program: Path = ENGINE) -> list[Path]:
    """All sources and headers, in a fixed order."""
    files = sorted(path for path in program.parent.iterdir() if path.suffix in (".h", ".cpp"))
    return files if program == ENGINE else [*files, SOURCES / "simd.h"]


def find_compiler() -> tuple[str, str]:
    """Path and version of a C++ compiler. Raises LibraryUnavailableError where there is none."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = shutil.which(name) if name else None
        if path is None:
            continue
        asked = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return path, asked.stdout.splitlines()[0]
    raise LibraryUnavailableError(
        "there is no C++ compiler (g++ or clang++) and no compiled library; install a compiler, or take an image "
        "that brings the library"
    )


def compiled(variant: Variant, cache: Path, program: Path = ENGINE) -> Path:
    """The library of a variant in the cache; compiled where it is not there yet."""
    compiler, version = find_compiler()
    digest = hashlib.sha256("\0".join((version, *FLAGS, *variant.flags)).encode())
    for source in sources(program):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    path = cache / digest.hexdigest()[:16] / file_name(variant, program)
    if not path.is_file():
        compile_library(compiler, variant, path, program)
    return path


def compile_library(compiler: str, variant: Variant, path: Path, program: Path = ENGINE) -> None:
    """Compile to `path`, which appears whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".so")
    except OSError as error:
        raise LibraryUnavailableError(f"{path.parent} cannot be written ({error}); set KUBEFORMER_CACHE") from None
    os.close(descriptor)
    command = [compiler, *FLAGS, *variant.flags, str(program), "-o", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LibraryUnavailableError(f"{compiler} failed with code {done.returncode}: {done.stderr.strip()[:500]}")
        os.chmod(name, 0o755)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> None:
    """Compile every variant into a directory: for images, whose CPU is not known yet."""
    directory = Path(arguments[0])
    compiler, version = find_compiler()
    for variant in VARIANTS if platform.machine() == "x86_64" else VARIANTS[-1:]:
        for program in (ENGINE, TRAINING):
            compile_library(compiler, variant, directory / file_name(variant, program), program)
            print(f"{file_name(variant, program)}: {version}")


if __name__ == "__main__":
    main(sys.argv[1:])

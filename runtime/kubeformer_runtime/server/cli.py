"""kubeformer-serve MODEL: serve a model directory from this machine, without a cluster.

    kubeformer-serve ~/models/SmolLM2-135M-Instruct --port 8000 --quantization int8

Any Hugging Face directory that the engine knows, or one that the trainer published. While it loads, a bar shows how far
it is; at the end stand the address and a line to try it with. What is heavy is imported after the first line is shown.
"""

import argparse
import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kubeformer.contract.names import ExitCode

if TYPE_CHECKING:
    from kubeformer.contract.server import ServerSettings
    from kubeformer_runtime.server.serving import Serving

DTYPES = {"auto": "Auto", "float32": "Float32", "bfloat16": "BFloat16", "float16": "Float16"}
QUANTIZATIONS = {"none": "None", "int8": "Int8", "int4": "Int4"}
NUMERICS = {"fast": "Fast", "reproducible": "Reproducible"}
BAR_WIDTH = 30
REDRAW_SECONDS = 0.1


def parser() -> argparse.ArgumentParser:
    """The command line; names are vLLM's where it has the same option."""
    made = argparse.ArgumentParser(prog="kubeformer-serve", description=(__doc__ or "").split("\n")[0])
    made.add_argument("model", type=Path, metavar="MODEL", help="the model's directory")
    made.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines")
    made.add_argument("--port", type=int, default=8000, help="0: any that is free")
    made.add_argument("--served-model-name", nargs="+", metavar="NAME", help="what requests call the model")
    made.add_argument("--dtype", choices=DTYPES, default="auto")
    made.add_argument("--quantization", choices=QUANTIZATIONS, default="none", help="of the weights, while loading")
    made.add_argument(
        "--numerics", choices=NUMERICS, default="fast", help="reproducible: the same tokens whatever else runs"
    )
    made.add_argument("--speculative-tokens", type=int, default=0, metavar="N", help="drafts a step; 0: none")
    made.add_argument("--max-model-len", type=int, metavar="TOKENS", help="prompt and answer together")
    made.add_argument("--max-num-seqs", type=int, default=64, metavar="N", help="answers written at once")
    made.add_argument("--max-num-batched-tokens", type=int, default=2048, metavar="TOKENS", help="of one step")
    made.add_argument("--kv-cache-megabytes", type=int, metavar="MIB")
    made.add_argument(
        "--lora-modules", nargs="+", type=_module, default=[], metavar="NAME=DIRECTORY", help="adapters to serve"
    )
    made.add_argument("--threads", type=int, metavar="N", help="left out: as many as there are cores")
    return made


def _module(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIRECTORY")
    return name, Path(path)


def settings_of(arguments: argparse.Namespace) -> "ServerSettings":
    """The settings that the operator would write for such a model. Raises ValueError where a value cannot be."""
    from kubeformer.contract.base import Location
    from kubeformer.contract.server import Adapter, ServerSettings

    def location(path: Path) -> Location:
        path = path.expanduser().resolve()
        return Location(uri=str(path), path=str(path))

    model = location(arguments.model)
    name = Path(model.path).name
    return ServerSettings(
        name=name,
        namespace="local",
        model=model,
        served_names=arguments.served_model_name or [name],
        dtype=DTYPES[arguments.dtype],
        quantization=QUANTIZATIONS[arguments.quantization],
        numerics=NUMERICS[arguments.numerics],
        speculative_tokens=arguments.speculative_tokens,
        adapters=[Adapter(name=name, location=location(path)) for name, path in arguments.lora_modules],
        max_model_length=arguments.max_model_len,
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=arguments.max_num_batched_tokens,
        kv_cache_megabytes=arguments.kv_cache_megabytes,
        drain_seconds=5,
    )


@dataclass(slots=True)
class ProgressBar:
    """Stages of loading: on a terminal a bar that is drawn anew, elsewhere one line a stage."""

    out: TextIO
    tty: bool
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)
    _name: str = ""
    _total: int = 0
    _done: int = 0
    _drawn: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.clock()

    def stage(self, name: str, total: int = 0) -> None:
        """A new stage begins; `total`: bytes that it will go through, 0 where that is not known."""
        self._name, self._total, self._done = name, total, 0
        self._draw() if self.tty else self._line(f"{name} ...")

    def advance(self, size: int) -> None:
        """So many more bytes are done."""
        self._done += size
        if self.tty and self.clock() - self._drawn >= REDRAW_SECONDS:
            self._draw()

    def close(self, text: str) -> None:
        """The end, and what there is to say of it."""
        if self.tty:
            self.out.write("\r\033[K")
        self._line(text)

    def _line(self, text: str) -> None:
        self.out.write(f"{text}\n")
        self.out.flush()

    def _draw(self) -> None:
        self._drawn = self.clock()
        bar = ""
        if self._total:
            share = min(1.0, self._done / self._total)
            full = round(share * BAR_WIDTH)
            bar = f" [{'#' * full}{'.' * (BAR_WIDTH - full)}] {share:4.0%} of {self._total / 1e6:,.0f} MB"
        self.out.write(f"\r\033[K{self._name}{bar}  {self._drawn - self.began:.1f} s")
        self.out.flush()


def greeting(serving: "Serving", url: str, seconds: float) -> str:
    """The address, and a line to try it with that fits the kind of model."""
    name = serving.name
    if serving.labeller is not None or (serving.pooler is not None and serving.pooler.model.task == "classify"):
        path, body = "/classify", f'{{"model": "{name}", "input": "Is this spam?"}}'
    elif serving.pooler is not None:
        path, body = "/v1/embeddings", f'{{"model": "{name}", "input": "A sentence."}}'
    elif serving.generator is not None and serving.generator.template is not None:
        path = "/v1/chat/completions"
        body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}'
    else:
        path, body = "/v1/completions", f'{{"model": "{name}", "prompt": "Once upon a time", "max_tokens": 32}}'
    return (
        f"{name} is ready after {seconds:.1f} s: {url}\n\n"
        f"  curl {url}{path} -H 'Content-Type: application/json' -d '{body}'\n"
    )


async def run(settings: "ServerSettings", host: str, port: int, threads: int | None, bar: ProgressBar) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code."""
    import signal

    gc.disable()  # see __main__.py
    from kubeformer_runtime.model.errors import ModelError
    from kubeformer_runtime.server.main import Address, serve

    gc.freeze()
    gc.enable()

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def ready(serving: "Serving", address: Address) -> None:
        bar.close(greeting(serving, f"http://{address.host}:{address.port}", bar.clock() - bar.began))

    try:
        await serve(settings, Address(host, port), stop, threads=threads, late=0.0, progress=bar, on_ready=ready)
    except ModelError as error:
        bar.close(f"{settings.name} cannot be served ({error.reason}): {error}")
        return ExitCode.INVALID
    except OSError as error:
        bar.close(f"{host}:{port} cannot be listened on: {error.strerror}; choose another --port")
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # see __main__.py; before PyTorch is loaded
    found: Any = parser().parse_args(arguments)
    if not found.model.expanduser().is_dir():
        sys.stderr.write(f"there is no directory {found.model}; give a model's directory\n")
        sys.exit(ExitCode.INVALID)
    bar = ProgressBar(sys.stderr, sys.stderr.isatty())
    bar.stage("loading PyTorch")
    try:
        settings = settings_of(found)
    except ValueError as error:
        bar.close(str(error))
        sys.exit(2)
    code = asyncio.run(run(settings, found.host, found.port, found.threads, bar))
    sys.stderr.flush()
    os._exit(code)  # a thread that still loads a model must not hold the process back


if __name__ == "__main__":
    main()

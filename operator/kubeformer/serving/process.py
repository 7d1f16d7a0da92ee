"""Process: what runs in a server's pod, as far as the engines differ in it; and how the built-in one is started."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubeformer.contract import names

HEALTH = "/health"
FAREWELL_SECONDS = 2

Resources = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Process:
    """The one process of a server. All engines answer on the same port, with the same paths for probes and metrics."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)  # what a deployment's own pod.env may override

    before_stop: Mapping[str, Any] = field(default_factory=lambda: {"sleep": {"seconds": FAREWELL_SECONDS}})
    """The hook between "no new requests" in EndpointSlices and SIGTERM, as core/v1 has it."""

    extra_seconds: int = FAREWELL_SECONDS
    """What it needs beside drainSeconds: for the hook, and to end when nothing runs any more."""

    shared_memory: str | None = None
    """Size of /dev/shm where the deployment names none; None: the container runtime's own."""

    checks_digest: bool = True
    """Whether it compares the model's digest by itself before it serves."""

    last_words: str = "File"
    """terminationMessagePolicy: whether it writes its last words to the file, or its log is all there is."""


def builtin(threads: int | None) -> Process:
    """Our own engine: it reads the settings file, and takes late requests for a while after SIGTERM."""
    environment = {"HOME": names.SCRATCH_DIRECTORY}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return Process(("python", "-m", "kubeformer_runtime.server"), environment)

"""Which runner computes a decoder: the CPU's own kernels where they can, PyTorch for everything else."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.engine import cpu_runner
from kubeformer_runtime.engine.cpu_runner import CpuRunner
from kubeformer_runtime.engine.llama_runner import LlamaRunner
from kubeformer_runtime.kernels.binding import BLOCK_SIZE
from kubeformer_runtime.kernels.library import LibraryUnavailableError, load_library
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.errors import ModelError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerPlan:
    """The choice for one model; `obstacle` says why the kernels cannot run it, None: they do."""

    config: LlamaConfig
    dtype: torch.dtype
    device: torch.device
    settings: ServerSettings
    threads: int
    obstacle: str | None

    @property
    def block_bytes(self) -> int:
        """Bytes that a block of the KV cache takes over all layers."""
        if self.obstacle is None:
            return cpu_runner.block_bytes(self.config, self.dtype)
        return LlamaRunner.block_bytes(self.config, self.dtype, BLOCK_SIZE)

    def build(
        self,
        weights: dict[str, Tensor],
        *,
        num_blocks: int,
        max_length: int,
        reload: Callable[[], dict[str, Tensor]],
    ) -> CpuRunner | LlamaRunner:
        """The runner; `weights` is emptied."""
        if self.obstacle is None:
            return CpuRunner(
                self.config,
                weights,
                num_blocks=num_blocks,
                max_length=max_length,
                quantization=self.settings.quantization,
                threads=self.threads,
                reload=reload,
            )
        return LlamaRunner(
            self.config, weights, num_blocks=num_blocks, block_size=BLOCK_SIZE, max_length=max_length, reload=reload
        )


def plan_runner(
    config: LlamaConfig, dtype: torch.dtype, device: torch.device, settings: ServerSettings, threads: int
) -> RunnerPlan:
    """Choose.

    Raises:
        ModelError: the settings ask for what only the kernels do, and they cannot run here.
    """
    obstacle = cpu_runner.unsupported(config, dtype, device)
    if obstacle is None:
        try:
            load_library()
        except LibraryUnavailableError as error:
            obstacle = str(error)
            logger.warning("there are no kernels for this CPU, so PyTorch computes, several times slower: %s", error)
    if obstacle is not None:
        for field, value in (("quantization", settings.quantization), ("numerics", settings.numerics)):
            if value not in ("None", "Fast"):
                raise ModelError(
                    f"engine.{field} is {value}, which takes the engine's own kernels, but {obstacle}; "
                    "leave the field out"
                )
    return RunnerPlan(config, dtype, device, settings, threads, obstacle)

"""In which type matrices are multiplied, and the scaling of the loss that float16 needs.

Weights, moments and sums are float32 whatever is chosen. bfloat16 has float32's range: nothing more is needed. float16
has gradients below 6e-8 vanish, so the loss is multiplied by a scale that is doubled after a long time without an
overflow and halved at each one, whose step is left out. https://arxiv.org/abs/1710.03740
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch

from kubeformer.contract.job import Training

Precision = Literal["Float32", "BFloat16", "Float16"]
DTYPES: dict[Precision, torch.dtype] = {
    "Float32": torch.float32,
    "BFloat16": torch.bfloat16,
    "Float16": torch.float16,
}
LARGE = 4_000_000  # parameters from which bfloat16 is the faster one on CPUs that have instructions for it
FIRST_SCALE = 65536.0
LEAST_SCALE = 2.0**-14
MOST_SCALE = 2.0**24
STEPS_TO_DOUBLE = 1000


def choose_precision(
    training: Training, device: torch.device, *, fusable: bool = False, parameters: int = 0
) -> Precision:
    """What the settings ask for; Auto is what the hardware does well.

    On GPUs bfloat16 where they have it, else float16. On CPUs bfloat16 where our kernels can train the network in it
    (`fusable`) and it is large enough to gain; under autocast, which casts every weight at every use, it gains nothing.
    """
    if training.precision != "Auto":
        return training.precision
    if device.type == "cuda":
        return "BFloat16" if torch.cuda.is_bf16_supported() else "Float16"
    return "BFloat16" if fusable and parameters >= LARGE else "Float32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Forward passes run within."""
    if precision == "Float32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


@dataclass(frozen=True, slots=True)
class LossScale:
    """The factor of the loss, and how many steps in a row went well."""

    scale: float = FIRST_SCALE
    steps: int = 0

    def after(self, finite: bool) -> "LossScale":
        """What follows a step whose gradient was finite or not."""
        if not finite:
            return LossScale(max(LEAST_SCALE, self.scale / 2))
        if self.steps + 1 < STEPS_TO_DOUBLE:
            return replace(self, steps=self.steps + 1)
        return LossScale(min(MOST_SCALE, self.scale * 2))

    @property
    def hopeless(self) -> bool:
        """Whether halving did not help: the gradient is infinite for other reasons."""
        return self.scale <= LEAST_SCALE

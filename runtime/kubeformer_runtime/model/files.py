"""Safetensors files of a model directory, whole or sharded, read with care: `read_weights(directory)`.

What a tensor means is none of this file's business; see weights.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kubeformer.contract.names import Reason
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.reading import read_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
OnBytes = Callable[[int], None]


def read_weights(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    on_bytes: OnBytes | None = None,
) -> dict[str, Tensor]:
    """Reads model.safetensors, or the shards that model.safetensors.index.json names.

    Floating-point tensors become `dtype` (None: as stored) one at a time, so memory never holds two copies
    of the whole model. `on_bytes` hears the size of each as it is read.

    Raises:
        ModelError: no weights (reason ModelNotFound), or a file that is not safetensors (ModelInvalid).
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(Path(directory)):
        weights.update(read_file(path, dtype, device, on_bytes))
    return weights


def read_file(
    path: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    on_bytes: OnBytes | None = None,
) -> dict[str, Tensor]:
    """Reads one safetensors file; see read_weights."""
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors file is not a dict
                tensor = shard.get_tensor(name)
                if on_bytes is not None:
                    on_bytes(tensor.nbytes)
                weights[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    except FileNotFoundError:
        raise ModelError(f"{INDEX_FILE} names {path.name}, which is not there", Reason.MODEL_NOT_FOUND) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    return weights


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in order; raises ModelError where there is none."""
    if (directory / INDEX_FILE).is_file():
        index = read_json(directory / INDEX_FILE).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ModelError(f"{directory / INDEX_FILE} has no weight_map")
        names = sorted({str(name) for name in index.values()})
        if any("/" in name or name.startswith(".") for name in names):
            raise ModelError(f"{directory / INDEX_FILE} names files outside its directory")
        return [directory / name for name in names]
    if (directory / WEIGHTS_FILE).is_file():
        return [directory / WEIGHTS_FILE]
    if pickled := sorted(path.name for suffix in PICKLED for path in directory.glob(suffix)):
        raise ModelError(
            f"{directory} has its weights as {some(pickled)}, a pickle, which can run code when it is read; "
            f"publish the model as {WEIGHTS_FILE}"
        )
    raise ModelError(f"{directory} has neither {WEIGHTS_FILE} nor {INDEX_FILE}", Reason.MODEL_NOT_FOUND)


def check_values(weights: Mapping[str, Tensor]) -> None:
    """Raises ModelError where a tensor does not hold numbers: integers of a quantised file, NaN, infinity."""
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ModelError(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}, not as real numbers")
        # Any NaN or infinity shows in the sum; one that is merely too large is looked at again. 20 ms for 135M weights;
        # with dtype=torch.float32 the sum of bfloat16 would take twenty times as long.
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
            raise ModelError(f"{name} holds numbers that are not finite (NaN or infinity): the file is damaged")


def some(names: list[str]) -> str:
    """The first of many names, for messages."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

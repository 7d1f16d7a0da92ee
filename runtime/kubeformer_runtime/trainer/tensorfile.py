"""Files of tensors in the safetensors format, also of parts of tensors as PyTorch DCP marks them. Pure but for reading.

A file is 8 bytes that say how long the header is, the header as JSON, and the tensors' bytes back to back
(https://huggingface.co/docs/safetensors). Where a file holds parts, its header says under DCP_SHARDING_INFO where in
the whole tensor each begins: what torch.distributed.checkpoint.HuggingFaceStorageWriter writes and its reader expects.
So `torch.distributed.checkpoint.load` opens our checkpoints, and `read` opens DCP's; tests hold both to it.
Importing DCP costs a start of a rank two seconds, and its writer goes through pickle and copies: hence our own.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes: where the first tensor begins in a file
SHARDING = "DCP_SHARDING_INFO"
OFFSETS = "saved_offsets"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Block:
    """A tensor, or the part of one that this rank holds: a box that begins at `offsets` of the whole."""

    name: str
    tensor: Tensor
    offsets: tuple[int, ...] | None = None  # None: it is the whole
    still: bool = False  # whether its numbers never change again, so that nobody has to copy them


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What one file holds."""

    name: str
    blocks: tuple[Block, ...]


def header(blocks: Sequence[Block]) -> bytes:
    """Everything of a file that lies before the first tensor's bytes."""
    entries: dict[str, object] = {}
    metadata = {"format": "pt"}
    if any(block.offsets is not None for block in blocks):
        whole = {block.name: block.offsets or (0,) * block.tensor.dim() for block in blocks}
        metadata |= {
            SHARDING: json.dumps({name: {OFFSETS: list(at)} for name, at in whole.items()}),
            "DCP_VERSION": "1.0",
        }
    entries["__metadata__"] = metadata
    at = 0
    for block in blocks:
        end = at + block.tensor.nbytes
        entries[block.name] = {
            "dtype": DTYPES[block.tensor.dtype],
            "shape": list(block.tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of some files by name, put together where several files hold parts of one.

    Raises OSError and SafetensorError for files that cannot be read, ValueError for a tensor with holes in it.
    """
    from safetensors import safe_open

    wholes: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[tuple[int, ...], Tensor]]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            offsets = json.loads((file.metadata() or {}).get(SHARDING, "{}"))
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                tensor = file.get_tensor(name)
                if name in offsets:
                    parts.setdefault(name, []).append((tuple(offsets[name][OFFSETS]), tensor))
                else:
                    wholes[name] = tensor
    return wholes | {name: _whole(name, boxes) for name, boxes in parts.items()}


def _whole(name: str, boxes: list[tuple[tuple[int, ...], Tensor]]) -> Tensor:
    """One tensor from boxes that fill it; replicas of the same box are allowed."""
    distinct = dict(boxes)
    ends = [[at + size for at, size in zip(offset, box.shape, strict=True)] for offset, box in distinct.items()]
    shape = [max(along) for along in zip(*ends, strict=True)]
    whole = torch.empty(shape, dtype=boxes[0][1].dtype)
    if sum(box.numel() for box in distinct.values()) != whole.numel():
        raise ValueError(f"the parts of {name} do not make up a tensor of {shape}")
    for offset, box in distinct.items():
        whole[tuple(slice(at, at + size) for at, size in zip(offset, box.shape, strict=True))] = box
    return whole

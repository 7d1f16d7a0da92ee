"""Checkpoints: the whole state of a run as one directory that is there in full or not at all.

    DIRECTORY/step-00001200/model.safetensors       weights by name, float32
                            optimizer.safetensors   its moments: optimizer.mean.NAME ... for each weight
                            best.safetensors        of the best evaluation, as best.NAME, where they are other ones
                            state.json              counters, metrics, what this may be continued with
                            digests.json            a digest (sums.py) of each of the above

Where ranks hold parts of tensors (FSDP, tensor parallel), each writes its own files (model-00001-of-00004.safetensors
...) in the format of PyTorch DCP (tensorfile.py); any strategy on any number of ranks goes on from either. No pickle
anywhere. A checkpoint is filled under a name that nobody looks for, flushed and renamed; when it is read, each file's
digest is checked, and one that is torn or altered is passed over for the one before. saving.py: in the background.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from kubeformer_runtime.durable import sync_directory, sync_file
from kubeformer_runtime.model.digest import digest_of_files
from kubeformer_runtime.trainer.state import State
from kubeformer_runtime.trainer.sums import file_sums
from kubeformer_runtime.trainer.tensorfile import Block, TensorFile, read
from kubeformer_runtime.trainer.writing import Disk, Live, Room, write

MODEL, OPTIMIZER, BEST = "model", "optimizer", "best"
STATE, DIGESTS = "state.json", "digests.json"
SUFFIX = ".safetensors"
PREFIX = "step-"
UNFINISHED = ".incomplete"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint holds, in memory, on the CPU: whole tensors."""

    state: State
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # by MOMENT.WEIGHT, e.g. mean.embed_tokens.weight
    best: dict[str, Tensor] | None  # None: no evaluation yet


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint on storage."""

    path: Path
    digest: str
    step: int


class Damaged(Exception):
    """A checkpoint that does not hold what was written."""


def file_name(kind: str, rank: int = 0, ranks: int = 1) -> str:
    """model.safetensors, or model-00001-of-00004.safetensors where several ranks write."""
    return f"{kind}{SUFFIX}" if ranks == 1 else f"{kind}-{rank + 1:05d}-of-{ranks:05d}{SUFFIX}"


def whole_files(snapshot: Snapshot) -> list[TensorFile]:
    """The files of a snapshot that one rank writes alone."""
    state = snapshot.state
    blocks = {
        MODEL: [Block(name, tensor) for name, tensor in snapshot.model.items()],
        OPTIMIZER: [Block(f"{OPTIMIZER}.{name}", tensor) for name, tensor in snapshot.optimizer.items()],
    }
    if snapshot.best is not None and state.best is not None and state.best.step != state.step:
        blocks[BEST] = [Block(f"{BEST}.{name}", tensor, still=True) for name, tensor in snapshot.best.items()]
    return [TensorFile(file_name(kind), tuple(held)) for kind, held in blocks.items()]


def save(directory: Path, snapshot: Snapshot, keep: int, disk: Disk | None = None) -> Written:
    """Writes DIRECTORY/step-N at once and removes all but the last `keep`. OSError where storage refuses."""
    files = whole_files(snapshot)
    blocks = [block for file in files for block in file.blocks]
    live = Live([block.tensor for block in blocks], [block.still for block in blocks], Room())
    folder = begin(directory, snapshot.state.step, str(os.getpid()))
    try:
        digests = write(folder, files, live, disk or Disk())
        return commit(folder, snapshot.state.step, snapshot.state.model_dump_json(indent=1), digests, keep)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def begin(directory: Path, step: int, token: str) -> Path:
    """The directory to fill; the same for all ranks that have the same token, and for nobody else."""
    folder = directory / f".{PREFIX}{step:08d}.{token}{UNFINISHED}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def commit(folder: Path, step: int, state: str, digests: Mapping[str, str], keep: int) -> Written:
    """Gives a filled directory its name, when all in it is on storage; removes all but the last `keep` up to it."""
    directory, path = folder.parent, path_of(folder.parent, step)
    (folder / STATE).write_text(state, "utf-8")
    digests = {**digests, STATE: file_sums(folder / STATE)}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1), "utf-8")
    for name in (STATE, DIGESTS):
        sync_file(folder / name)
    sync_directory(folder)
    old = folder.with_suffix(".replaced")
    if path.exists():
        os.rename(path, old)
    os.rename(folder, path)
    sync_directory(directory)
    shutil.rmtree(old, ignore_errors=True)
    # Later ones than this were damaged, or this run would have gone on from them: they do not count as kept.
    for gone in [known for known in numbered(directory) if step_of(known) <= step][:-keep]:
        shutil.rmtree(gone, ignore_errors=True)
    return Written(path, digest_of_files(digests), step)


def clear(directory: Path) -> None:
    """Removes what writers left that were killed half-way. For rank 0, before anybody writes."""
    for pattern in (f".{PREFIX}*{UNFINISHED}", f".{PREFIX}*.replaced"):
        for leftover in directory.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return directory / f"{PREFIX}{step:08d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint's name tells."""
    return int(path.name.removeprefix(PREFIX))


def numbered(directory: Path) -> list[Path]:
    """Checkpoints of a directory, oldest first, whole or not."""
    found = [path for path in directory.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def newest(directory: Path) -> tuple[Written | None, list[str]]:
    """The newest checkpoint that is whole, None where there is none, and what was wrong with newer ones."""
    complaints = list[str]()
    for path in reversed(numbered(directory)):
        try:
            return verify(path), complaints
        except Damaged as error:
            complaints.append(str(error))
    return None, complaints


def verify(path: Path) -> Written:
    """Checks every file against its digest, and that nothing lies beside them. Raises Damaged."""
    try:
        digests = json.loads((path / DIGESTS).read_text("utf-8"))
        if not isinstance(digests, dict) or not _complete(set(digests)):
            raise Damaged(f"{path / DIGESTS} does not name all files")
        if foreign := {file.name for file in path.iterdir() if file.suffix == SUFFIX} - digests.keys():
            raise Damaged(f"{path} holds {min(foreign)}, which was not written with it")
        for name, expected in digests.items():
            if (found := file_sums(path / name)) != expected:
                raise Damaged(f"{path / name} has digest {found[:17]}, not {str(expected)[:17]} as when it was written")
        step = State.model_validate_json((path / STATE).read_text("utf-8")).step
        if step != step_of(path):
            raise Damaged(f"{path} holds the state after step {step}")
        return Written(path, digest_of_files(digests), step)
    except (OSError, ValueError, TypeError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from None


def _complete(names: set[str]) -> bool:
    """Whether state, and weights and moments of each rank that wrote, are among the names."""
    if STATE not in names:
        return False
    for kind in (MODEL, OPTIMIZER):
        if file_name(kind) in names:
            continue
        parts = [name for name in names if name.startswith(f"{kind}-")]
        ranks = int(parts[0].removesuffix(SUFFIX)[-5:]) if parts else 0
        if not ranks or not {file_name(kind, rank, ranks) for rank in range(ranks)} <= names:
            return False
    return True


def load(path: Path) -> Snapshot:
    """Reads a checkpoint that `verify` found whole. Raises Damaged."""
    try:
        state = State.model_validate_json((path / STATE).read_text("utf-8"))
        model, optimizer, best = (_read(path, kind) for kind in (MODEL, OPTIMIZER, BEST))
        return Snapshot(state, model, optimizer, None if state.best is None else best or model)
    except (OSError, SafetensorError, ValidationError, ValueError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from None


def _read(path: Path, kind: str) -> dict[str, Tensor]:
    files = [path / file_name(kind)] if (path / file_name(kind)).exists() else sorted(path.glob(f"{kind}-*{SUFFIX}"))
    return {name.removeprefix(f"{kind}.") if kind != MODEL else name: tensor for name, tensor in read(files).items()}


def restore_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies weights into the network's own parameters."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[name])


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The network's parameters that are trained, by name, on the CPU; shared memory where they are there already."""
    return {name: p.detach().cpu() for name, p in network.named_parameters() if p.requires_grad}

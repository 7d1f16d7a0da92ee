"""Checkpoints: the whole state of a run as one directory that is there in full or not at all.

    DIRECTORY/step-00001200/model.safetensors       weights, float32
                            optimizer.safetensors   its moments: flat vectors, see flat.py
                            best.safetensors        weights of the best evaluation, where they are other ones
                            state.json              counters, metrics, what this may be continued with
                            digests.json            SHA-256 of each of the above

No pickle anywhere. A checkpoint is written beside, flushed and renamed (durable.new_directory); when it is read,
each file's digest is checked, and one that is torn or altered is passed over for the one before.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kubeformer_runtime.durable import new_directory
from kubeformer_runtime.model.digest import digest_of_files, file_digest
from kubeformer_runtime.trainer.state import State

MODEL, OPTIMIZER, BEST = "model.safetensors", "optimizer.safetensors", "best.safetensors"
STATE, DIGESTS = "state.json", "digests.json"
PREFIX = "step-"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint holds, in memory, on the CPU."""

    state: State
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor] | None  # None: no evaluation yet


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint on storage."""

    path: Path
    digest: str
    step: int


class Damaged(Exception):
    """A checkpoint that does not hold what was written."""


def save(directory: Path, snapshot: Snapshot, keep: int) -> Written:
    """Writes DIRECTORY/step-N and removes all but the last `keep`. OSError where storage refuses."""
    state = snapshot.state
    path = path_of(directory, state.step)
    with new_directory(path, replace=True) as fresh:
        save_file(snapshot.model, fresh / MODEL)
        save_file(snapshot.optimizer, fresh / OPTIMIZER)
        if snapshot.best is not None and state.best is not None and state.best.step != state.step:
            save_file(snapshot.best, fresh / BEST)
        (fresh / STATE).write_text(state.model_dump_json(indent=1), "utf-8")
        digests = {file.name: file_digest(file) for file in sorted(fresh.iterdir())}
        (fresh / DIGESTS).write_text(json.dumps(digests, indent=1), "utf-8")
    for old in numbered(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return Written(path, digest_of_files(digests), state.step)


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return directory / f"{PREFIX}{step:08d}"


def numbered(directory: Path) -> list[Path]:
    """Checkpoints of a directory, oldest first, whole or not."""
    found = [path for path in directory.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


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
    """Checks every file against its digest. Raises Damaged."""
    try:
        digests = json.loads((path / DIGESTS).read_text("utf-8"))
        if not isinstance(digests, dict) or not {MODEL, OPTIMIZER, STATE} <= digests.keys():
            raise Damaged(f"{path / DIGESTS} does not name all files")
        for name, expected in digests.items():
            if (found := file_digest(path / name)) != expected:
                raise Damaged(f"{path / name} has digest {found[:12]}, not {expected[:12]} as when it was written")
        return Written(path, digest_of_files(digests), int(path.name.removeprefix(PREFIX)))
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from None


def load(path: Path) -> Snapshot:
    """Reads a checkpoint that `verify` found whole."""
    try:
        state = State.model_validate_json((path / STATE).read_text("utf-8"))
        model = load_file(path / MODEL)
        best = None
        if state.best is not None:
            best = load_file(path / BEST) if (path / BEST).exists() else model
        return Snapshot(state, model, load_file(path / OPTIMIZER), best)
    except (OSError, SafetensorError, ValidationError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from None


def restore(network: nn.Module, optimizer_state: Mapping[str, Tensor], snapshot: Snapshot) -> None:
    """Puts weights and moments back where they were, in place."""
    restore_weights(network, snapshot.model)
    for name, vector in optimizer_state.items():
        vector.copy_(snapshot.optimizer[name])


def restore_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies weights into the network's own parameters."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(tensors[name])


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The network's parameters by name, on the CPU; shared memory where they are there already."""
    return {name: parameter.detach().cpu() for name, parameter in network.named_parameters()}

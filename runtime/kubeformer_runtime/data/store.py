"""Prepared data as a directory: one .npy file an array, the tokenizer's files, and prepared.json.

The directory appears with its name only when it is whole (durable.new_directory), so a rank that sees it can
load it. Arrays are mapped, not read: N ranks of a pod share one copy in the page cache.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from kubeformer_runtime.data.prepared import DataReport, Prepared, SourceReport, Split, SplitReport
from kubeformer_runtime.data.tokenizer import TextTokenizer
from kubeformer_runtime.durable import new_directory

_META = "prepared.json"
_TOKENIZER = "tokenizer"
_SPLITS = ("train", "validation", "test")


def is_stored(directory: Path) -> bool:
    """Whether prepared data is there, in full."""
    return (directory / _META).is_file()


def store(prepared: Prepared, directory: Path) -> None:
    """Write everything; the directory must not exist."""
    with new_directory(directory) as target:
        splits = {name: split for name in _SPLITS if (split := getattr(prepared, name)) is not None}
        for name, split in splits.items():
            for field in dataclasses.fields(split):
                np.save(target / f"{name}.{field.name}.npy", getattr(split, field.name), allow_pickle=False)
        if prepared.tokenizer is not None:
            prepared.tokenizer.save(target / _TOKENIZER)
        meta = {"facts": dict(prepared.facts), "splits": [*splits], "report": dataclasses.asdict(prepared.report)}
        (target / _META).write_text(json.dumps(meta, indent=2))


def load(directory: Path, split_type: type[Split]) -> Prepared:
    """What `store` wrote, of splits of this type; arrays are read-only maps."""
    meta = json.loads((directory / _META).read_text())
    parts = {name: _split(directory, name, split_type) for name in meta["splits"]}
    tokenizer = TextTokenizer.load(directory / _TOKENIZER) if (directory / _TOKENIZER).is_dir() else None
    return Prepared(
        parts["train"], parts["validation"], parts.get("test"), meta["facts"], tokenizer, _report(meta["report"])
    )


def _split(directory: Path, name: str, kind: type[Split]) -> Split:
    return kind(**{field.name: _array(directory / f"{name}.{field.name}.npy") for field in dataclasses.fields(kind)})


def _array(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an empty array cannot be mapped
        return np.load(path, allow_pickle=False)


def _report(value: dict[str, Any]) -> DataReport:
    parts = {name: SplitReport(**value[name]) if value[name] is not None else None for name in _SPLITS}
    sources = tuple(SourceReport(**source) for source in value.get("sources", ()))
    return DataReport(**{**value, **parts, "warnings": tuple(value["warnings"]), "sources": sources})

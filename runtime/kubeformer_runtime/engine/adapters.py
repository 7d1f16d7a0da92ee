"""Adapters: which LoRA adapters an engine holds, by name, and when the memory of one that was removed comes free.

A name may be taken again by another adapter after it was removed, while answers of the first still run and blocks
of its cache still lie about. So sequences carry a key, name and number of the loading, and never the name alone.
"""

from itertools import count
from pathlib import Path
from typing import Protocol

from kubeformer.contract.names import Reason
from kubeformer_runtime.engine.lora import LoraAdapter, read_adapter
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.errors import ModelError


class AdapterRunner(Protocol):
    """The part of a runner that is asked."""

    config: LlamaConfig

    def add_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Hold an adapter for sequences that name `key`. Raises ModelError where this runner runs none."""
        ...

    def remove_adapter(self, key: str) -> None:
        """Let go of an adapter that no sequence uses any more."""
        ...


class Adapters:
    """Changed between two steps only, in the engine's thread; reading is safe from any."""

    def __init__(self, runner: AdapterRunner) -> None:
        self._runner = runner
        self._keys: dict[str, str] = {}
        self._removed: set[str] = set()
        self._numbers = count(1)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may use, in the order of loading."""
        return tuple(self._keys)

    def key(self, name: str | None) -> str | None:
        """The key that sequences carry; None for None. Raises KeyError for a name that is not held."""
        return None if name is None else self._keys[name]

    def add(self, name: str, directory: str | Path) -> None:
        """Read an adapter and hold it. Raises ModelError where it cannot be used, or the name is taken."""
        if name in self._keys:
            raise ModelError(f"an adapter named {name!r} is loaded already; unload it first or choose another name")
        key = f"{name}@{next(self._numbers)}"
        self._runner.add_adapter(key, read_adapter(directory, self._runner.config))
        self._keys[name] = key

    def remove(self, name: str) -> None:
        """Take no more requests for it; `collect` frees its memory. Raises ModelError for a name that is not held."""
        if name not in self._keys:
            raise ModelError(f"no adapter named {name!r} is loaded", Reason.MODEL_NOT_FOUND)
        self._removed.add(self._keys.pop(name))

    @property
    def removed(self) -> bool:
        """Whether `collect` could have something to do."""
        return bool(self._removed)

    def collect(self, in_use: set[str | None]) -> None:
        """Free removed adapters whose keys are not in use."""
        for key in self._removed - in_use:
            self._runner.remove_adapter(key)
            self._removed.discard(key)

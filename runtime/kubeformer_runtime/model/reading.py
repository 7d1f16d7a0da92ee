"""Fields of a JSON document of a model directory, read with care: a wrong one is a ModelError that names it.

`fields = Fields("config.json", document)`; then `fields.integer("hidden_size")` and so on. A field that is there
but null counts as absent, as in transformers. Standard library only.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kubeformer.contract.names import Reason
from kubeformer_runtime.model.errors import ModelError

LARGEST = 1 << 24  # no size of a model comes near it; a damaged one must not make us ask for exabytes


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of finite numbers, or raises ModelError."""

    def refuse(constant: str) -> NoReturn:
        raise ModelError(f"{path} holds {constant} where a number has to be")

    try:
        document = json.loads(path.read_text("utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}", Reason.MODEL_NOT_FOUND) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, an endless number, too deep
        raise ModelError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ModelError(f"{path} is not a JSON object")
    return document


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and the file's name, for messages."""

    file: str
    document: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.document.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer from 1 to LARGEST; without a default the field has to be there."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse(name, "an integer", value)
        if not 1 <= value <= LARGEST:
            raise ModelError(f"{self.file}: {name} is {_shown(value)}; it has to be 1 to {LARGEST}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._refuse(name, "a number", value)
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        if (value := self.number(name, default)) <= 0:
            self._refuse(name, "a number above 0", value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            self._refuse(name, "true or false", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            self._refuse(name, "a string", value)
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A JSON object; empty where it is absent."""
        value = self._value(name, {})
        if not isinstance(value, dict):
            self._refuse(name, "an object", value)
        return value

    def token_id(self, name: str) -> int | None:
        """A token id, or None."""
        if not self.has(name):
            return None
        value = self.document[name]
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST:
            self._refuse(name, "a token id", value)
        return value if value >= 0 else None  # transformers 4 wrote -1 for "none"

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id or a list of them."""
        value = self.document.get(name)
        values = value if isinstance(value, list) else [value]
        found = [Fields(self.file, {name: item}).token_id(name) for item in values]
        return tuple(item for item in found if item is not None)

    def _value(self, name: str, default: Any) -> Any:
        return self.document[name] if self.has(name) else default

    def _refuse(self, name: str, wanted: str, value: object) -> NoReturn:
        raise ModelError(f"{self.file}: {name} has to be {wanted}, not {_shown(value)}")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "an endless number"
    return text if len(text) <= 80 else text[:77] + "..."

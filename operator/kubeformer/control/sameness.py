"""Whether two pieces of JSON mean the same to the API server: order of keys and null members do not count."""

import hashlib
import json
from typing import Any


def plain(value: Any) -> Any:
    """The value with mappings as dicts, sequences as lists, and without members that are None."""
    if hasattr(value, "items"):
        return {str(name): plain(member) for name, member in value.items() if member is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def same(one: Any, other: Any) -> bool:
    """Equality after `plain`; 1 and 1.0 are equal, True and 1 are not."""
    return digest(one) == digest(other)


def digest(value: Any) -> bytes:
    """Sixteen bytes that are equal for values that mean the same."""
    text = json.dumps(_whole(plain(value)), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _whole(value: Any) -> Any:
    """Floats without a fraction as integers, because JSON does not tell them apart."""
    if isinstance(value, dict):
        return {name: _whole(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value

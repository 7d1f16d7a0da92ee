"""Digests of what was rendered: how a planner knows, without a diff, that a child already is as it should be."""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """JSON in one spelling: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def short_hash(value: Any, length: int = 10) -> str:
    """The first hexadecimal digits of the SHA-256 of a JSON value (or of a text as it stands)."""
    text = value if isinstance(value, str) else canonical(value)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]

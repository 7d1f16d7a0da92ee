"""Quantities: what 500m, 1Gi or 2e3 stand for, as exact numbers, to compare what is asked with what is there."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def amount(quantity: object) -> Decimal | None:
    """The number that a quantity stands for (cores, bytes, devices); None for what is no quantity."""
    text = str(quantity).strip()
    suffix = next((s for s in (text[-2:], text[-1:]) if s in _SUFFIXES), "")
    try:
        number = Decimal(text[: len(text) - len(suffix)])
    except InvalidOperation:
        return None
    return number * _SUFFIXES.get(suffix, Decimal(1)) if number.is_finite() else None


def mebibytes(size: int) -> str:
    """A size in bytes as a quantity of whole mebibytes, rounded up."""
    return f"{-(-size // 2**20)}Mi"


def with_defaults(
    limits: Mapping[str, object], requests: Mapping[str, object], defaults: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """core/v1 resources, where a request that is left out gets its default, but never more than its limit."""
    limited = {name: str(quantity) for name, quantity in limits.items()}
    requested = {name: str(quantity) for name, quantity in requests.items()}
    for name, quantity in defaults.items():
        limit, default = amount(limited.get(name, "")), amount(quantity)
        over = limit is not None and default is not None and default > limit
        requested.setdefault(name, limited[name] if over else quantity)
    return {"limits": limited, "requests": requested} if limited else {"requests": requested}

"""Findings: how a planner decides. An ordered chain of small named checks, each of which finds something or nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from kubeformer.kit.view import Key

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """Why something cannot go on: a reason from the API's list, and a sentence with field, value and way out.

    `waits` says that it may come right by itself or by another's hand (a job that still trains, a claim that
    somebody will make), and `depends_on` names what would have to change.
    """

    reason: str
    message: str
    waits: bool = False
    depends_on: tuple[Key, ...] = ()


def first_finding(checks: Iterable[Callable[[T], Finding | None]], seen: T) -> Finding | None:
    """What the first check that objects has to say."""
    return next((found for check in checks if (found := check(seen)) is not None), None)

"""Findings: how a planner decides. An ordered chain of small named checks, each of which finds something or nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from kubeformer.kit.child import Child
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


def name_taken(seen: "Named", owner: str, reason: str) -> Finding | None:
    """A finding if the child of the primary's name belongs to somebody else. One that is being deleted is waited for.

    `owner` is the kind of the primaries: what belongs to another one of them is about to go.
    """
    stranger = seen.stranger
    if stranger is None:
        return None
    going = stranger.meta.deletion_timestamp is not None or stranger.meta.owner_kind == owner
    what = "is still being deleted" if going else "exists and belongs to someone else: delete it, or use another name"
    return Finding(
        reason,
        f"metadata.name is {seen.name}, and a {stranger.kind} of that name {what}.",
        waits=going,
        depends_on=(Key(stranger.kind, seen.key.namespace, seen.name),),
    )


class Named(Protocol):
    """What was observed of a primary whose main child has its name."""

    @property
    def key(self) -> Key:
        """The primary."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def stranger(self) -> Child | None:
        """A child of that name that is not its own."""


def first_finding(checks: Iterable[Callable[[T], Finding | None]], seen: T) -> Finding | None:
    """What the first check that objects has to say."""
    return next((found for check in checks if (found := check(seen)) is not None), None)

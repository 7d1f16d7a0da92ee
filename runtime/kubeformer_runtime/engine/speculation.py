"""Speculation by prompt lookup: guess that what followed these words before follows them again. Pure.

A step computes the last token of a sequence together with its drafts, and reads the weights once for all of them.
Each row is then sampled as if it had come alone, in order, until a chosen token is not the draft: the rest is
discarded. To accept a draft d with probability p(d), and otherwise to take a token from p without d, is what
rejection sampling asks of a draft that is certain (https://arxiv.org/abs/2211.17192); to draw from p and compare is
the same thing, and as the t-th token has its own random number, the answer is token by token the one that would have
come without drafts.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import TypeVar

T = TypeVar("T")

LONGEST, SHORTEST = 4, 3  # tokens of the ends that are looked up; in free text two promise too much
TRUST = 0.5  # share of drafts expected to be accepted before anything is known
MEMORY = 0.8  # weight of the past in the share of accepted drafts
WORTHWHILE = 0.3  # below this share drafts cost more than they bring
PAUSE = 48  # tokens until a sequence that was bad at it may try again


class Drafter:
    """Drafts for one sequence. Remembers where each n-gram of its tokens was seen last."""

    __slots__ = ("_next", "_place", "_rate", "_rest")

    def __init__(self) -> None:
        self._place: dict[tuple[int, ...], int] = {}  # an n-gram, and the position of the token that followed it
        self._next = 1  # position of the first token that is not in there as a follower
        self._rate = TRUST  # share of drafts accepted of late
        self._rest = 0  # no drafts before there are so many tokens

    def propose(self, tokens: SequenceOf[int], most: int) -> list[int]:
        """At most `most` tokens that may follow: those after the latest place where the longest known end stood.

        A copy may run into what it copies, so a period goes on and on. Fewer where few were accepted of late, none
        where it did not pay.
        """
        for end in range(self._next, len(tokens)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._place[tuple(tokens[end - length : end])] = end
        self._next = max(self._next, len(tokens))
        most = min(most, max(1, round(self._rate * most)))
        if most < 1 or len(tokens) < self._rest:
            return []
        for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            place = self._place.get(tuple(tokens[-length:]))
            if place is not None:
                drafts: list[int] = []
                for index in range(place, place + most):
                    drafts.append(tokens[index] if index < len(tokens) else drafts[index - len(tokens)])
                return drafts
        return []

    def learn(self, num_tokens: int, drafted: int, accepted: int) -> None:
        """So many of the drafts were right; the sequence has `num_tokens` tokens."""
        self._rate = MEMORY * self._rate + (1 - MEMORY) * accepted / drafted
        if self._rate < WORTHWHILE:
            self._rest, self._rate = num_tokens + PAUSE, TRUST


def without_end(drafts: list[int], ends: frozenset[int]) -> list[int]:
    """Drafts up to the first token that would end the answer: nothing is to be chosen behind an end."""
    for index, token in enumerate(drafts):
        if token in ends:
            return drafts[:index]
    return drafts


def verify(
    drafts: SequenceOf[SequenceOf[int]], choose: Callable[[list[int], int], list[T]], token_of: Callable[[T], int]
) -> list[list[T]]:
    """What is chosen for each sequence, given its drafts: accepted ones, then one more.

    `choose(which, depth)` chooses, for each of these sequences, the token behind its first `depth` drafts; it is
    asked only where all of those were chosen before.
    """
    chosen: list[list[T]] = [[] for _ in drafts]
    which, depth = list(range(len(drafts))), 0
    while which:
        for index, item in zip(which, choose(which, depth), strict=True):
            chosen[index].append(item)
        which = [
            index
            for index in which
            if depth < len(drafts[index]) and drafts[index][depth] == token_of(chosen[index][-1])
        ]
        depth += 1
    return chosen

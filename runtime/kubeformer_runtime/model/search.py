"""How a target is found, token by token: greedily, or with a beam of hypotheses side by side.

Both see a model through `Writer` alone. Shapes: B rows, K beams, N = B · K hypotheses, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Writer(Protocol):
    """A model that writes one token a step to every hypothesis."""

    def first(self, rows: int) -> Tensor:
        """(rows,) tokens that every target begins with."""
        ...

    def step(self, token_N: Tensor) -> Tensor:
        """Writes a token to each hypothesis; log-probabilities of the next one, (N, V)."""
        ...

    def select(self, row_N: Tensor) -> None:
        """Goes on with these hypotheses, in this order; one may come more than once or not at all."""
        ...


def greedy_search(
    writer: Writer, rows: int, max_length: int, eos: int, beams: int = 1, length_penalty: float = 1.0
) -> list[list[int]]:
    """The likeliest token each time, until <eos>; rows that ended leave the batch. Here `beams` is 1."""
    answers: list[list[int]] = [[] for _ in range(rows)]
    going = list(range(rows))  # which answer each hypothesis writes
    token_N = writer.first(rows)
    for _ in range(max_length):
        token_N = writer.step(token_N).argmax(dim=-1)
        chosen = token_N.tolist()
        kept = [index for index, token in enumerate(chosen) if token != eos]
        for index in kept:
            answers[going[index]].append(chosen[index])
        if not kept:
            break
        if len(kept) < len(going):
            row_N = torch.tensor(kept, device=token_N.device)
            going, token_N = [going[index] for index in kept], token_N[row_N]
            writer.select(row_N)
    return answers


@dataclass(slots=True)
class Finished:
    """The best hypotheses of one row that have ended, with their scores, best first."""

    size: int
    found: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, score: float, tokens: list[int]) -> None:
        """Keeps it if it is among the best."""
        self.found.append((score, tokens))
        self.found.sort(key=lambda pair: -pair[0])
        del self.found[self.size :]

    def full_of_better(self, score: float) -> bool:
        """Whether there are enough, and none is worse than `score`."""
        return len(self.found) == self.size and self.found[-1][0] >= score


def beam_search(
    writer: Writer, rows: int, max_length: int, eos: int, beams: int, length_penalty: float = 1.0
) -> list[list[int]]:
    """The likeliest answer that a beam of K hypotheses finds.

    A hypothesis's score is the sum of its tokens' log-probabilities, <eos> among them, divided by their number to the
    power of `length_penalty`. A row is done when K have ended and what still goes on does not score better (as
    transformers has it by default, with early_stopping=False).
    """
    device = writer.first(1).device
    writer.select(torch.arange(rows, device=device).repeat_interleave(beams))
    token_N = writer.first(rows * beams)
    # All beams of a row begin alike; only the first may be gone on from.
    score_BK = torch.full((rows, beams), float("-inf"), device=device)
    score_BK[:, 0] = 0.0
    texts: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(rows)]
    finished, done = [Finished(beams) for _ in range(rows)], [False] * rows
    for length in range(1, max_length + 1):
        next_NV = writer.step(token_N)
        total_BC = (score_BK[:, :, None] + next_NV.view(rows, beams, -1)).flatten(1)
        vocabulary = next_NV.shape[-1]
        # Twice as many as beams: even if K of them end here, K go on.
        best_score_BC, best_BC = total_BC.topk(min(2 * beams, total_BC.shape[1]), dim=1)
        origin, token = (best_BC // vocabulary).tolist(), (best_BC % vocabulary).tolist()
        scores = best_score_BC.tolist()
        rows_next, tokens_next, scores_next = list[int](), list[int](), list[list[float]]()
        for row in range(rows):
            goes_on = list[tuple[float, int, int]]()
            for rank, (score, beam, chosen) in enumerate(zip(scores[row], origin[row], token[row], strict=True)):
                if chosen == eos:
                    if rank < beams and not done[row]:
                        finished[row].add(score / length**length_penalty, texts[row][beam])
                elif len(goes_on) < beams:
                    goes_on.append((score, beam, chosen))
            goes_on += [(float("-inf"), 0, eos)] * (beams - len(goes_on))  # a vocabulary smaller than the beam
            done[row] = done[row] or finished[row].full_of_better(goes_on[0][0] / length**length_penalty)
            texts[row] = [[*texts[row][beam], chosen] for _, beam, chosen in goes_on]
            rows_next += [row * beams + beam for _, beam, _ in goes_on]
            tokens_next += [chosen for _, _, chosen in goes_on]
            scores_next.append([score for score, _, _ in goes_on])
        if all(done):
            break
        token_N, score_BK = torch.tensor(tokens_next, device=device), torch.tensor(scores_next, device=device)
        writer.select(torch.tensor(rows_next, device=device))
    else:
        for row, row_scores in enumerate(score_BK.tolist()):
            for beam in range(beams if not done[row] else 0):
                finished[row].add(row_scores[beam] / max_length**length_penalty, texts[row][beam])
    return [ended.found[0][1] for ended in finished]

"""How near a generated text comes to the one that was wanted: chrF for translation, ROUGE-L for summaries.

chrF (https://aclanthology.org/W15-3049) is an F-score over character n-grams, n = 1 to 6, white space left out, recall
counting twice as much as precision. It is of a whole set of texts, from sums that ranks can add up; equal to
sacrebleu's default, chrF2. ROUGE-L (https://aclanthology.org/W04-1013) is an F-score over the longest common
subsequence of words, by the package rouge-score; the mean over texts.
"""

from collections import Counter
from collections.abc import Sequence

LONGEST = 6  # characters of an n-gram
BETA = 2.0  # how much more recall counts
SUMS = 3 * LONGEST


def chrf_sums(written: str, wanted: str) -> list[float]:
    """For each n: n-grams of the text written, of the text wanted, and those in both. Sums over texts may be added."""
    written, wanted = "".join(written.split()), "".join(wanted.split())
    sums: list[float] = []
    for n in range(1, LONGEST + 1):
        ours, theirs = _ngrams(written, n), _ngrams(wanted, n)
        # A wanted text too short for an n-gram says nothing of those that were written.
        count = ours.total() if theirs else 0
        sums += [count, theirs.total(), (ours & theirs).total()]
    return sums


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[begin : begin + n] for begin in range(len(text) - n + 1))


def chrf(sums: Sequence[float]) -> float:
    """0 to 100, from the sums of chrf_sums over all texts."""
    precisions, recalls = [], []
    for n in range(LONGEST):
        ours, theirs, both = sums[3 * n : 3 * n + 3]
        if ours > 0 and theirs > 0:
            precisions.append(both / ours)
            recalls.append(both / theirs)
    if not precisions:
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    if precision + recall == 0:
        return 0.0
    return 100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def rouge_l(written: Sequence[str], wanted: Sequence[str]) -> float:
    """Sum over texts of the F-score, each 0 to 100. Words are what letters and digits make, in lower case."""
    from rouge_score.rouge_scorer import RougeScorer  # takes a second to import

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = zip(written, wanted, strict=True)
    return sum(100 * float(scorer.score(target, prediction)["rougeL"].fmeasure) for prediction, target in pairs)


class _Words:
    """Words of any language; rouge-score's own tokenizer knows the letters a to z alone."""

    def tokenize(self, text: str) -> list[str]:
        """Runs of letters and digits."""
        return "".join(character if character.isalnum() else " " for character in text.lower()).split()

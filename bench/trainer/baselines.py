"""What a model has to beat: rules and counts that need no gradient. Pure, but for the logistic regression."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kubeformer_runtime.data.clean import clean_text

_WORD = re.compile(r"\w+|[^\w\s]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
CS = (0.1, 1.0, 10.0, 100.0)


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a JSON Lines file, their texts normalised as a job normalises them."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{key: clean_text(value, "NFKC") for key, value in row.items()} for row in rows]


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def thinned(rows: Sequence[dict[str, str]], most: int | None) -> list[dict[str, str]]:
    """Up to `most` rows, evenly drawn (a corpus may be sorted by label or name); None: all."""
    if most is None or len(rows) <= most:
        return list(rows)
    return [rows[number * len(rows) // most] for number in range(most)]


class Dictionary:
    """Translates word by word, each by the word that most often stands beside it in pairs (Dice's coefficient)."""

    def __init__(self, rows: Sequence[dict[str, str]]) -> None:
        together: dict[str, Counter[str]] = {}
        ours, theirs = Counter[str](), Counter[str]()
        for row in rows:
            source, target = set(_WORD.findall(row["source"].lower())), set(_WORD.findall(row["target"]))
            ours.update(source)
            theirs.update(target)
            for word in source:
                together.setdefault(word, Counter()).update(target)
        self.word = {
            word: max(counts, key=lambda other: (2 * counts[other] / (ours[word] + theirs[other]), other))
            for word, counts in together.items()
            if counts
        }

    def translate(self, text: str) -> str:
        """Words in the order of the source; those that training did not show stay as they are."""
        return " ".join(self.word.get(word.lower(), word) for word in _WORD.findall(text))


def first_sentence(text: str) -> str:
    """Lead-1: a summary by taking the first sentence, hard to beat where texts begin with what they are about."""
    return _SENTENCE.split(text, maxsplit=1)[0]


def tfidf_accuracy(train: Sequence[dict[str, str]], held_out: Sequence[dict[str, str]], folds: int = 3) -> float:
    """Percent, of logistic regression over TF-IDF of words and pairs of words, C by cross-validation."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    features = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    pipeline = make_pipeline(features, LogisticRegression(max_iter=300))
    search = GridSearchCV(pipeline, {"logisticregression__C": list(CS)}, cv=folds, scoring="accuracy")
    search.fit([row["text"] for row in train], [row["label"] for row in train])
    score = search.score([row["text"] for row in held_out], [row["label"] for row in held_out])
    return 100 * float(score)

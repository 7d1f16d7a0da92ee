"""recommendation: who took what, and when; each user's rows become a sequence of items, in time's order.

Of every user with three rows or more the last item is held out for the test and the one before it for validation
(leave-one-out): nothing is trained on what came after it in the same sequence. All items are known to the model, also
those that are only held out, because any item can be asked for. Legend: R rows, B rows of a batch, T items of the
longest row of a batch, X all items of a split.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from kubeformer.contract.job import JobSettings, Recommendation
from kubeformer.contract.names import Reason
from kubeformer_runtime.data.clean import text_of
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepared import IGNORE, Beat, Float32, Int32, Int64, Prepared
from kubeformer_runtime.data.read import BadRow, RawRow, kind_of
from kubeformer_runtime.data.recipes import Encoded, Parts
from kubeformer_runtime.data.recipes.texts import flattened
from kubeformer_runtime.data.tokenizer import TextTokenizer

HELD_OUT = 2  # items of a user's sequence that are not trained on: one to validate, one to test


@dataclass(frozen=True, slots=True)
class Interaction:
    """A user took an item at a time (seconds, or any number that grows)."""

    user: str
    item: str
    time: float


@dataclass(frozen=True, slots=True)
class RecommendationSplit:
    """R windows of sequences: the last `predicted_R` items of row r are predicted, each from those before it.

    Item numbers begin at 1.
    """

    items_X: Int32
    offsets_R1: Int64  # row r is items_X[offsets_R1[r] : offsets_R1[r + 1]], two items at least
    predicted_R: Int64

    def __len__(self) -> int:
        return len(self.predicted_R)

    @property
    def tokens(self) -> int:
        """Items of all rows."""
        return len(self.items_X)

    @property
    def lengths_R(self) -> Int64:
        """Items of each row that the network reads: all but the last."""
        return np.diff(self.offsets_R1) - 1


@dataclass(frozen=True, slots=True)
class RecommendationBatch:
    """B sequences, padded with 0 behind; targets are the next items, IGNORE where none is predicted."""

    items_BT: Int32
    targets_BT: Int64


class RecommendationRecipe:
    """See Recipe."""

    split_type = RecommendationSplit

    def __init__(self, task: Recommendation) -> None:
        self.task = task

    @property
    def fields(self) -> Mapping[str, str]:
        """See Recipe."""
        task, spec = self.task, "task.recommendation"
        return {
            task.user_field: f"{spec}.userField",
            task.item_field: f"{spec}.itemField",
            task.time_field: f"{spec}.timeField",
        }

    def example(self, row: RawRow) -> Interaction | BadRow:
        """See Recipe."""
        user = text_of(row, self.task.user_field, allow_numbers=True)
        item = text_of(row, self.task.item_field, allow_numbers=True)
        for name, value in ((self.task.user_field, user), (self.task.item_field, item)):
            if isinstance(value, BadRow):
                return value
            if not value:
                return BadRow(row.place, f"field {name!r} is empty")
        time = time_of(row, self.task.time_field)
        if isinstance(time, BadRow):
            return time
        assert isinstance(user, str)
        assert isinstance(item, str)
        return Interaction(user, item, time)

    def texts(self, example: Interaction) -> Sequence[str]:
        """None: nothing here is language."""
        return ()

    def key(self, example: Interaction) -> str:
        """The same item at the same moment is the same row, told twice."""
        return f"{example.user}\0{example.item}\0{example.time!r}"

    def digest_parts(self, example: Interaction) -> Iterable[str]:
        """See Recipe."""
        return (example.user, example.item, repr(example.time))

    def divide(
        self, kept: Sequence[Interaction], validation: Sequence[Interaction] | None, beat: Beat
    ) -> Parts[Interaction]:
        """Leave-one-out, each part in the order of users and of time."""
        train: list[Interaction] = []
        validating: list[Interaction] = []
        test: list[Interaction] = []
        for sequence in by_user(kept).values():
            if len(sequence) <= HELD_OUT:
                train += sequence
                continue
            train += sequence[:-HELD_OUT]
            validating.append(sequence[-2])
            test.append(sequence[-1])
        if not validating:
            raise DataError(
                Reason.DATA_INVALID,
                f"data: no user has {HELD_OUT + 1} rows or more, so nothing can be held out; set "
                "task.recommendation.userField to the field that names who took an item",
            )
        return Parts(train, validating, test)

    def tokenizer(self, train: Sequence[Interaction], beat: Beat) -> TextTokenizer | None:
        """None."""
        return None

    def encode(self, parts: Parts[Interaction], tokenizer: TextTokenizer | None, beat: Beat) -> Encoded:
        """See Recipe."""
        taken = Counter(example.item for example in parts.train)
        everywhere = [*parts.train, *parts.validation, *(parts.test or ())]
        items = tuple(sorted({example.item for example in everywhere}))
        if len(items) < 2:
            raise DataError(
                Reason.DATA_INVALID,
                f"data: all rows have the item {items[0]!r}; set task.recommendation.itemField to what is recommended",
            )
        number = {name: index for index, name in enumerate(items, start=1)}
        beat()
        histories = {user: [number[step.item] for step in sequence] for user, sequence in by_user(parts.train).items()}
        train = split_of(windows(histories.values(), self.task.max_length))
        held_out = []
        for part in (parts.validation, parts.test or ()):
            beat()
            for example in part:
                histories[example.user].append(number[example.item])
            rows = [histories[example.user][-(self.task.max_length + 1) :] for example in part]
            held_out.append(split_of((row, 1) for row in rows))
        warnings: tuple[str, ...] = ()
        if unseen := len(items) - len(taken):
            warnings = (f"{unseen} of {len(items)} items occur only among what is held out",)
        popularity = [taken.get(name, 0) for name in items]
        facts = {"items": list(items), "popularity": popularity}
        return Encoded(train, held_out[0], held_out[1], facts, warnings, vocabulary_size=len(items) + 1)


def recipe(settings: JobSettings) -> RecommendationRecipe:
    """The recipe of a recommendation. Raises DataError where settings ask for what cannot be done to sequences."""
    assert isinstance(settings.task, Recommendation)
    data = settings.data
    for name, given in (("validation", data.validation), ("test", data.test)):
        if given is not None:
            raise DataError(
                Reason.SETTINGS_INVALID,
                f"data.{name}: a recommendation holds out the last items of each user itself; leave it out",
            )
    if data.keep_together == "Near":
        raise DataError(
            Reason.SETTINGS_INVALID,
            "spec.data.validation.keepTogether: a recommendation holds out the last items of each user; leave it out",
        )
    if data.prepare.deduplicate == "Near":
        raise DataError(
            Reason.SETTINGS_INVALID,
            "data.prepare.deduplicate: Near compares words, which a recommendation has none of; use Exact or None",
        )
    if len({source.weight for source in data.all_sources}) > 1:
        raise DataError(
            Reason.SETTINGS_INVALID,
            "spec.data.sources[].weight: rows of a recommendation are moments in a user's sequence, none of which can "
            "come twice; give all sources the same weight",
        )
    return RecommendationRecipe(settings.task)


def item_names(prepared: Prepared) -> tuple[str, ...]:
    """Items in order: item i is the name at i - 1."""
    return tuple(prepared.facts["items"])


def time_of(row: RawRow, name: str) -> float | BadRow:
    """A moment: a number, a number as text, or a date as ISO 8601 writes it (without a zone: UTC)."""
    value = row.fields.get(name)
    if value is None:
        return BadRow(row.place, f"field {name!r} is missing")
    time = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        time = float(value)
    elif isinstance(value, str):
        time = _parsed(value)
    if not math.isfinite(time):
        found = repr(value)[:40] if isinstance(value, str) else kind_of(value)
        return BadRow(row.place, f"field {name!r} holds {found}, neither a number nor a date (ISO 8601)")
    return time


def _parsed(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def by_user(rows: Iterable[Interaction]) -> dict[str, list[Interaction]]:
    """Sequences in time's order; rows of the same moment stay in the order they came in."""
    users: dict[str, list[Interaction]] = {}
    for row in rows:
        users.setdefault(row.user, []).append(row)
    return {user: sorted(sequence, key=lambda row: row.time) for user, sequence in users.items()}


def windows(sequences: Iterable[Sequence[int]], max_length: int) -> Iterable[tuple[Sequence[int], int]]:
    """Cuts sequences into windows of max_length + 1 items: (window, how many of its last items are predicted).

    The last window ends with the sequence. Each overlaps the one before by half, and predicts what is new in it: so
    each item but the first is predicted once an epoch, and from half a window of items before it or more.
    """
    stride = max(1, max_length // 2)
    for items in sequences:
        end = len(items)
        while end >= 2:
            begin = max(0, end - max_length - 1)
            last = begin == 0
            yield items[begin:end], end - begin - 1 if last else min(stride, end - begin - 1)
            end = 0 if last else end - stride


def split_of(rows: Iterable[tuple[Sequence[int], int]]) -> RecommendationSplit:
    """Arrays of windows."""
    listed = list(rows)
    items_X, offsets_R1 = flattened([items for items, _ in listed])
    return RecommendationSplit(items_X, offsets_R1, np.asarray([predicted for _, predicted in listed], dtype=np.int64))


def recommendation_batch(split: RecommendationSplit, rows_B: Int64, weights_B: Float32) -> RecommendationBatch:
    """Gather, shift, pad."""
    begins_B, lengths_B = split.offsets_R1[rows_B], split.lengths_R[rows_B]
    items_BT = np.zeros((len(rows_B), int(lengths_B.max())), dtype=np.int32)
    targets_BT = np.full(items_BT.shape, IGNORE, dtype=np.int64)
    for row, (begin, length) in enumerate(zip(begins_B, lengths_B, strict=True)):
        items_BT[row, :length] = split.items_X[begin : begin + length]
        first = length - split.predicted_R[rows_B[row]]
        if weights_B[row] > 0:
            targets_BT[row, first:length] = split.items_X[begin + 1 + first : begin + 1 + length]
    return RecommendationBatch(items_BT, targets_BT)

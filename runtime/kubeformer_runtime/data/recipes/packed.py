"""Documents of many lengths packed into rows of one length, each document whole and kept apart from its neighbours.

Legend: R rows, B rows of a batch, S sequence length. Documents go into the fullest row that has room for them, longest
first ("best fit decreasing"), which leaves a percent or two of padding where documents are short beside a row.
https://arxiv.org/abs/2404.10830
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kubeformer_runtime.data.prepared import IGNORE, Bool, Float32, Int32, Int64


@dataclass(frozen=True, slots=True)
class Document:
    """N token ids, and which of them the model has to say (the first never counts: nothing stands before it)."""

    token_ids_N: Int32
    said_N: Bool


@dataclass(frozen=True, slots=True)
class PackedSplit:
    """R rows of S positions. `documents_RS` numbers the documents of a row from 0; -1 is padding."""

    inputs_RS: Int32
    targets_RS: Int32  # IGNORE where nothing is to be predicted
    documents_RS: Int32
    predicted_R: Int64  # targets of each row: one or more
    read_R: Int64  # positions of each row that are no padding

    def __len__(self) -> int:
        return len(self.inputs_RS)

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return int(self.read_R.sum())


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """B rows; targets are IGNORE where nothing is to be predicted or the row's weight is 0."""

    inputs_BS: Int32
    targets_BS: Int64
    documents_BS: Int32


def fill_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of documents by row, best fit decreasing. A document longer than `room` must not be there."""
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # rows by how much room they have left
    rooms: list[int] = []  # the keys of by_room, sorted
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        place = bisect_left(rooms, lengths[number])
        if place == len(rooms):
            row, left = len(rows), room
            rows.append([])
        else:
            left = rooms[place]
            row = by_room[left].pop()
            if not by_room[left]:
                del by_room[left]
                rooms.pop(place)
        rows[row].append(number)
        left -= lengths[number]
        if left:
            if left not in by_room:
                by_room[left] = []
                insort(rooms, left)
            by_room[left].append(row)
    return rows


def pack_documents(documents: Sequence[Document], sequence_length: int, pad_id: int) -> PackedSplit:
    """Each document of N tokens takes N - 1 positions, at most `sequence_length`: the last token is only predicted."""
    rows = fill_rows([len(document.token_ids_N) - 1 for document in documents], sequence_length)
    shape = (len(rows), sequence_length)
    inputs_RS = np.full(shape, pad_id, dtype=np.int32)
    targets_RS, documents_RS = np.full(shape, IGNORE, dtype=np.int32), np.full(shape, -1, dtype=np.int32)
    for row, numbers in enumerate(rows):
        begin = 0
        for number, document in enumerate(documents[index] for index in numbers):
            piece = slice(begin, begin + len(document.token_ids_N) - 1)
            inputs_RS[row, piece] = document.token_ids_N[:-1]
            targets_RS[row, piece] = np.where(document.said_N[1:], document.token_ids_N[1:], IGNORE)
            documents_RS[row, piece] = number
            begin = piece.stop
    predicted_R = (targets_RS != IGNORE).sum(axis=1, dtype=np.int64)
    return PackedSplit(
        inputs_RS, targets_RS, documents_RS, predicted_R, (documents_RS >= 0).sum(axis=1, dtype=np.int64)
    )


def packed_batch(split: PackedSplit, rows_B: Int64, weights_B: Float32) -> PackedBatch:
    """Gather."""
    targets_BS = split.targets_RS[rows_B].astype(np.int64)
    targets_BS[weights_B == 0] = IGNORE
    return PackedBatch(split.inputs_RS[rows_B], targets_BS, split.documents_RS[rows_B])

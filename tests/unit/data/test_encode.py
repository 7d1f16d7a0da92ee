"""Arrays: padded batches for a classifier, packed blocks for a language model."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kubeformer_runtime.data.clean import CleanRow
from kubeformer_runtime.data.prepared import IGNORE
from kubeformer_runtime.data.recipes.language_model import encode_language_model, language_model_batch, pack
from kubeformer_runtime.data.recipes.text_classification import classification_batch, encode_classification
from kubeformer_runtime.data.tokenizer import TextTokenizer
from tests.unit.data.builders import mails, no_beat

ROWS = [CleanRow(mail["text"], mail["label"]) for mail in mails(20)]
TOKENIZER = TextTokenizer.train([row.text for row in ROWS], 300)


@given(st.lists(st.integers(3, 90), max_size=80), st.integers(1, 17))
def test_packing_predicts_every_token_but_the_first_exactly_once(stream: list[int], length: int) -> None:
    split = pack(np.asarray(stream, dtype=np.int32), length, pad_id=0)
    weights = np.ones(len(split), dtype=np.float32)
    predicted: list[int] = []
    for row in range(len(split)):
        batch = language_model_batch(split, np.asarray([row]), weights[row : row + 1])
        targets = batch.targets_BS[0]
        predicted += [int(target) for target in targets if target != IGNORE]
        for position, target in enumerate(targets):
            if target != IGNORE and position:
                assert batch.inputs_BS[0, position] == targets[position - 1]
    assert predicted == stream[1:]


def test_documents_are_framed_in_the_stream() -> None:
    split = encode_language_model(ROWS[:2], TOKENIZER, 1000, no_beat)
    tokens = split.blocks_RS1[0, : split.lengths_R[0]].tolist()
    (first, second) = TOKENIZER.encode([row.text for row in ROWS[:2]])
    assert tokens == [1, *first, 2, 1, *second, 2]


def test_a_batch_is_padded_to_its_longest_row_and_no_further() -> None:
    split = encode_classification(ROWS, TOKENIZER, ("ham", "spam"), 64, no_beat)
    rows = np.asarray([3, 0, 7])
    batch = classification_batch(split, rows, np.asarray([1, 1, 0], dtype=np.float32), pad_id=0)
    longest = int(split.lengths_R[rows].max())
    assert longest <= batch.token_ids_BT.shape[1] < longest + 8
    for row, number in enumerate(rows):
        (expected,) = TOKENIZER.encode_framed([ROWS[number].text], 64)
        assert batch.token_ids_BT[row, : batch.lengths_B[row]].tolist() == expected
        assert not batch.token_ids_BT[row, batch.lengths_B[row] :].any()
    assert batch.labels_B.tolist() == [1, 1, 0]


def test_a_filler_predicts_nothing() -> None:
    split = encode_language_model(ROWS, TOKENIZER, 16, no_beat)
    batch = language_model_batch(split, np.asarray([0, 0]), np.asarray([1, 0], dtype=np.float32))
    assert (batch.targets_BS[0] != IGNORE).all()
    assert (batch.targets_BS[1] == IGNORE).all()

"""Encoders of every family answer as transformers does, from the directories that transformers writes."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertForSequenceClassification,
    DistilBertModel,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaForSequenceClassification,
)

from kubeformer_runtime.engine.encoder_model import load_encoder
from kubeformer_runtime.engine.pooling import PoolingInput
from kubeformer_runtime.engine.sampling_params import ParameterError
from kubeformer_runtime.model.encoder_config import is_encoder, read_encoder_config
from kubeformer_runtime.model.errors import ModelError
from tests.engine.encoder_builders import BERT, DISTIL, ROBERTA, TEXTS, WORDS, XLM, directory_of, loaded, settings


def hidden(kind: type, path: Path, item: PoolingInput) -> torch.Tensor:
    """transformers' last hidden states (T, D) of one text."""
    types = {"token_type_ids": torch.tensor([list(item.types)])} if kind is BertModel else {}
    with torch.inference_mode():
        found: torch.Tensor = kind.from_pretrained(path).eval()(torch.tensor([list(item.tokens)]), **types)[0][0]  # type: ignore[attr-defined]
    return found


def close(found: Sequence[float], expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "config"), [(BertModel, BERT), (RobertaModel, ROBERTA), (DistilBertModel, DISTIL)])
def test_embeddings_are_the_mean_of_transformers_hidden_states_whatever_the_batch(
    tmp_path: Path, kind: type, config: object
) -> None:
    path = directory_of(tmp_path, kind, config)
    model = loaded(path)
    items = [model.encode(text, field="input") for text in TEXTS]
    for item, vector, alone in zip(items, model.compute(items), map(model.compute, [[i] for i in items]), strict=True):
        close(vector, hidden(kind, path, item).mean(0))
        close(vector, torch.tensor(alone[0]))
    assert (model.task, model.pooling.mode, model.pooling.normalize) == ("embed", "mean", True)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (BertForSequenceClassification, BERT),
        (RobertaForSequenceClassification, ROBERTA),
        (DistilBertForSequenceClassification, DISTIL),
        (XLMRobertaForSequenceClassification, XLM),
    ],
)
def test_classification_heads_give_transformers_logits_for_texts_and_pairs(
    tmp_path: Path, kind: type, config: object
) -> None:
    model = loaded(directory_of(tmp_path, kind, config))
    items = [model.encode(text, field="input") for text in TEXTS]
    items += [model.encode(text, TEXTS[0], field="input") for text in TEXTS]
    reference = kind.from_pretrained(tmp_path).eval()  # type: ignore[attr-defined]
    for item, logits in zip(items, model.compute(items), strict=True):
        types = {"token_type_ids": torch.tensor([item.types])} if model.encoder.config.types > 1 else {}
        with torch.inference_mode():
            close(logits, reference(torch.tensor([item.tokens]), **types).logits[0])
    assert len(model.labels) == reference.config.num_labels


def test_heads_of_pretraining_and_old_names_are_read_past(tmp_path: Path) -> None:
    path = directory_of(tmp_path, BertForMaskedLM, BERT)
    expected = loaded(path).compute([PoolingInput((2, 5, 3))])[0]
    names = load_file(path / "model.safetensors")
    assert any(name.startswith("cls.") for name in names)
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in names.items()
    }
    save_file(old, path / "model.safetensors")
    assert loaded(path).compute([PoolingInput((2, 5, 3))])[0] == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("pooling_mode_cls_token", lambda x_TD: x_TD[0]),
        ("pooling_mode_max_tokens", lambda x_TD: x_TD.amax(0)),
        ("pooling_mode_mean_sqrt_len_tokens", lambda x_TD: x_TD.sum(0) / len(x_TD) ** 0.5),
    ],
)
def test_sentence_transformers_files_choose_the_pooling(tmp_path: Path, mode: str, expected: object) -> None:
    path = directory_of(tmp_path, BertModel, BERT)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, mode: True}))
    model = loaded(path)
    assert (model.pooling.normalize, model.max_model_len) == (False, 8)
    items = [model.encode(text, field="input") for text in (TEXTS[0], TEXTS[2])]
    for item, vector in zip(items, model.compute(items), strict=True):
        close(vector, expected(hidden(BertModel, path, item)))  # type: ignore[operator]
    (path / "modules.json").write_text(json.dumps([*modules, {"path": "2_Dense", "type": "x.Dense"}]))
    with pytest.raises(ModelError, match="Dense"):
        loaded(path)


def test_too_long_a_text_is_refused_or_cut_inside_its_frame(tmp_path: Path) -> None:
    model = loaded(directory_of(tmp_path, BertModel, BERT), max_model_length=8)
    with pytest.raises(ParameterError, match="at most 8"):
        model.encode(TEXTS[1], field="input")
    assert model.encode(TEXTS[1], field="input", truncate=-1).tokens == [2, *_ids(TEXTS[1])[:6], 3]
    pair = model.encode(TEXTS[0], TEXTS[1], field="input", truncate=-1)  # [CLS] a cat [SEP] every dog in [SEP]
    assert pair.tokens == [2, *_ids(TEXTS[0]), 3, *_ids(TEXTS[1])[:3], 3]
    assert list(pair.types) == [0, 0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(ParameterError, match="give -1"):
        model.encode("a", field="input", truncate=9)


def _ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "mish"}, "mish"),
        ({"num_hidden_layers": 3}, r"lack layers\.2"),
        ({"num_hidden_layers": 1}, r"hold layers\.1"),
        ({"intermediate_size": 50}, "has shape"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_a_directory_that_cannot_be_served_is_refused_in_a_sentence(
    tmp_path: Path, more: dict[str, object], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        loaded(directory_of(tmp_path, BertModel, BERT, **more))


DOCUMENTS = [
    config.to_dict() | {"architectures": ["XForSequenceClassification"]} for config in (BERT, ROBERTA, DISTIL, XLM)
]


@settings_of_hypothesis(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_config_is_served_or_refused_and_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.getbasetemp() / "damaged"
    directory.mkdir(exist_ok=True)
    document = DOCUMENTS[data.draw(st.integers(0, len(DOCUMENTS) - 1))]
    values = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.just({"a": 1})
    values |= st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
    names = st.sampled_from([*document, "matryoshka_dimensions", "problem_type", "sentence_transformers", "id2label"])
    (directory / "config.json").write_text(json.dumps(document | data.draw(st.dictionaries(names, values, max_size=3))))
    with contextlib.suppress(ModelError):  # anything else is a crash
        if is_encoder(directory):
            assert read_encoder_config(directory).max_length >= 1


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = directory_of(tmp_path, BertModel, BERT)
    weights = load_file(path / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][3, 3] = float("nan")
    save_file(weights, path / "model.safetensors")
    with pytest.raises(ModelError, match="not finite"):
        loaded(path)


def test_settings_of_language_models_are_refused_for_encoders(tmp_path: Path) -> None:
    path = directory_of(tmp_path, BertModel, BERT)
    for change, words in (
        ({"quantization": "Int8"}, "quantization"),
        ({"speculative_tokens": 4}, "speculativeTokens"),
        ({"max_model_length": 25}, "made for 24"),
        ({"dtype": "Float16"}, "Float16"),
    ):
        with pytest.raises(ModelError, match=words):
            load_encoder(settings(path, **change), path, device=torch.device("cpu"), stored=torch.float32, digest=None)

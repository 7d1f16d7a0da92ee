"""The classifier: what it may and may not depend on, and its way through a model directory."""

from pathlib import Path

import pytest
import torch

from kubeformer_runtime.model import ModelError, load
from kubeformer_runtime.model.classifier import pool
from kubeformer_runtime.model.config import ClassifierConfig
from kubeformer_runtime.model.weights import save
from tests.unit.model.builders import classifier_config, random_classifier, random_tokens

KINDS = {
    "ReLU": {"activation": "ReLU"},
    "GELU, learned positions": {"activation": "GELU", "positions": "Learned"},
    "SwiGLU, grouped queries": {"activation": "SwiGLU", "key_value_heads": 2},
}
every_kind = pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())


@every_kind
def test_padding_changes_nothing_neither_its_length_nor_its_content(changes: dict[str, object]) -> None:
    config = classifier_config(**changes)
    model, token_BT = random_classifier(config), random_tokens(config, rows=2, length=16)
    length_B = torch.tensor([16, 7])
    other_BT = token_BT.clone()
    other_BT[1, 7:] = 3
    with torch.no_grad():
        alone = model(token_BT[1:, :7], length_B[1:])
        torch.testing.assert_close(model(token_BT, length_B)[1:], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(other_BT, length_B)[1:], alone, rtol=1e-5, atol=1e-5)


@every_kind
def test_the_order_of_words_matters(changes: dict[str, object]) -> None:
    config = classifier_config(**changes)
    model, token_BT = random_classifier(config), random_tokens(config, rows=1, length=10)
    with torch.no_grad():
        there, back = model(token_BT, torch.tensor([10])), model(token_BT.flip(1), torch.tensor([10]))
    assert not torch.allclose(there, back, atol=1e-3)


@every_kind
def test_every_token_looks_both_ways(changes: dict[str, object]) -> None:
    config = classifier_config(**changes)
    model = random_classifier(config)
    x_BTD = model.embed_tokens(random_tokens(config, rows=1, length=10)).detach().requires_grad_()
    y_BTD = model.layers[0](x_BTD, None, torch.ones(1, 1, 1, 10, dtype=torch.bool))
    (gradient_BTD,) = torch.autograd.grad(y_BTD[0, 4].sum(), x_BTD)
    assert (gradient_BTD[0].abs().sum(-1) > 0).all()


@every_kind
def test_saving_and_loading_changes_no_bit(tmp_path: Path, changes: dict[str, object]) -> None:
    config = classifier_config(**changes)
    model = random_classifier(config)
    save(tmp_path, model)
    loaded = load(tmp_path)
    assert loaded.config == config
    token_BT, length_B = random_tokens(config, rows=3, length=12), torch.tensor([12, 1, 5])
    with torch.no_grad():
        assert torch.equal(loaded.module()(token_BT, length_B), model(token_BT, length_B))


def test_pooling_is_mean_and_maximum_of_the_tokens_that_are_there() -> None:
    x_BTD = torch.tensor([[[1.0, -5.0], [3.0, -1.0], [99.0, 99.0]]])
    here_BT = torch.tensor([[True, True, False]])
    assert pool(x_BTD, here_BT).tolist() == [[2.0, -3.0, 3.0, -1.0]]


def test_an_empty_text_gets_an_answer_rather_than_nan() -> None:
    config = classifier_config()
    logit_BC = random_classifier(config)(random_tokens(config, rows=1, length=4), torch.tensor([0]))
    assert torch.isfinite(logit_BC).all()


def test_config_json_tells_labels_both_ways() -> None:
    document = classifier_config().to_json()
    assert document["architectures"] == ["KubeformerForSequenceClassification"]
    assert document["id2label"] == {"0": "ham", "1": "spam", "2": "neither"}
    assert document["label2id"] == {"ham": 0, "spam": 1, "neither": 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 5}, "width 32 cannot be split evenly over 5 heads"),
        ({"key_value_heads": 3}, "4 heads cannot share 3 key-value heads"),
        ({"width": 12, "heads": 4}, "a head is 3 wide"),
        ({"labels": ("only",)}, "two labels or more, not 1"),
        ({"layers": 0}, "layers is 0"),
    ],
)
def test_numbers_that_do_not_fit_together_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        classifier_config(**changes).check()


def test_a_gap_between_labels_is_named() -> None:
    document = classifier_config().to_json() | {"id2label": {"0": "ham", "2": "spam"}}
    with pytest.raises(ModelError, match="no entry for class '1'"):
        ClassifierConfig.from_json(document)


def test_dropout_leaves_out_tokens_branches_and_features_in_training_alone() -> None:
    config = classifier_config(dropout=0.5)
    model, token_BT, length_B = random_classifier(config), random_tokens(config, rows=1, length=16), torch.tensor([16])
    with torch.no_grad():
        assert torch.equal(model(token_BT, length_B), model(token_BT, length_B))
        model.train()
        assert not torch.allclose(model(token_BT, length_B), model(token_BT, length_B))
        without = random_classifier(classifier_config(dropout=0.0))
        assert torch.equal(without.train()(token_BT, length_B), without.eval()(token_BT, length_B))

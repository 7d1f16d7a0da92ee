"""What we write, transformers reads; what it writes, we read; and both compute the same logits.

For every family: tiny, from random weights far from zero, norms and biases too, so that leaving one out shows.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from kubeformer_runtime.model import ModelError, bert, decoder_classifier, load, scratch
from kubeformer_runtime.model.decoder_config import LlamaConfig
from kubeformer_runtime.model.encoder_config import EncoderConfig
from kubeformer_runtime.model.scratch import Shape
from kubeformer_runtime.model.weights import Module, empty, save

VOCABULARY, LENGTH, PAD = 97, 32, 0
TOKENS = {"vocabulary_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
TABLE = {"vocab_size": VOCABULARY, "max_position_embeddings": 40}
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
DISTIL = {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 40}
SHARED_HEADS = {"num_key_value_heads": 2}

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def shaken(module: nn.Module) -> nn.Module:
    """Every parameter that learns random (sinusoidal positions do not), in evaluation mode."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, 0.1, 0.2)
    return module.eval()


def texts(pad: int = PAD) -> tuple[Tensor, Tensor, Tensor]:
    """Three texts of different lengths, padded: token_BT, length_B, and transformers' attention mask."""
    token_BT = torch.randint(3, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    length_B = torch.tensor([LENGTH, 7, 19])
    here_BT = torch.arange(LENGTH) < length_B[:, None]
    return token_BT.masked_fill(~here_BT, pad), length_B, here_BT.long()


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """Up to rounding in float32."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def read_by_them(directory: Path, kind: str) -> nn.Module:
    """Loaded by the class that config.json names, without a weight too few or too many."""
    loader = getattr(transformers, kind)
    theirs, found = loader.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    return theirs.eval()  # type: ignore[no-any-return]


def make(name: str, **fields: object) -> nn.Module:
    """A model of transformers', shaken: its class, and its config's fields."""
    kind = getattr(transformers, name)
    return shaken(kind(kind.config_class(**fields)))


DECODERS: dict[str, Callable[[], nn.Module]] = {
    "Llama": lambda: make("LlamaForCausalLM", **TABLE, **SIZES, **SHARED_HEADS),
    "Llama, tied": lambda: make("LlamaForCausalLM", **TABLE, **SIZES, tie_word_embeddings=True),
    "Qwen2, tied": lambda: make("Qwen2ForCausalLM", **TABLE, **SIZES, **SHARED_HEADS, tie_word_embeddings=True),
    "Qwen3": lambda: make("Qwen3ForCausalLM", **TABLE, **SIZES, **SHARED_HEADS, head_dim=16),
    "Mistral, a window": lambda: make("MistralForCausalLM", **TABLE, **SIZES, **SHARED_HEADS, sliding_window=8),
    "GPT-2": lambda: make("GPT2LMHeadModel", **GPT2),
    "GPT-2, ReLU": lambda: make("GPT2LMHeadModel", **GPT2, activation_function="relu"),
}


@pytest.mark.parametrize("family", DECODERS)
def test_a_language_model_of_theirs_is_trained_on_and_goes_back(family: str, tmp_path: Path) -> None:
    theirs, (token_BT, _, _) = DECODERS[family](), texts()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs").module()
    assert_equal(ours(token_BT), theirs(token_BT).logits)
    logits_BTV = ours(token_BT)
    loss = nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), token_BT[:, 1:].flatten())
    loss.backward()
    with torch.no_grad():
        for parameter in ours.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    (tmp_path / "ours").mkdir()
    save(tmp_path / "ours", ours)
    back = read_by_them(tmp_path / "ours", type(theirs).__name__)
    assert_equal(ours(token_BT), back(token_BT).logits)
    assert not torch.allclose(ours(token_BT), logits_BTV, atol=1e-3)
    embedding, head = back.get_input_embeddings().weight, back.get_output_embeddings().weight  # type: ignore[operator]
    assert (embedding.data_ptr() == head.data_ptr()) == ("tied" in family or "GPT" in family)


FROM_SCRATCH = {"ReLU": "GPT2LMHeadModel", "GELU": "GPT2LMHeadModel", "SwiGLU": "LlamaForCausalLM"}


@pytest.mark.parametrize("activation", FROM_SCRATCH)
def test_a_language_model_from_scratch_is_theirs(activation: str, tmp_path: Path) -> None:
    shape = Shape(2, 48, 4, activation=activation)  # type: ignore[arg-type]
    ours, (token_BT, _, _) = shaken(empty(scratch.decoder(shape, max_length=LENGTH, **TOKENS))), texts()
    save(tmp_path, ours)  # type: ignore[arg-type]
    assert_equal(ours(token_BT), read_by_them(tmp_path, FROM_SCRATCH[activation])(token_BT).logits)


@pytest.mark.parametrize("activation", FROM_SCRATCH)
def test_a_classifier_from_scratch_is_a_modernbert(activation: str, tmp_path: Path) -> None:
    shape = Shape(3, 48, 4, activation=activation)  # type: ignore[arg-type]
    config = scratch.classifier(shape, max_length=LENGTH, labels=("ham", "spam", "neither"), **TOKENS)
    ours, (token_BT, length_B, mask_BT) = shaken(empty(config)), texts()
    save(tmp_path, ours)  # type: ignore[arg-type]
    theirs = read_by_them(tmp_path, "ModernBertForSequenceClassification")
    assert_equal(ours(token_BT, length_B), theirs(token_BT, attention_mask=mask_BT).logits)
    assert theirs.config.id2label == {0: "ham", 1: "spam", 2: "neither"}  # type: ignore[union-attr]
    assert load(tmp_path).config == config


CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "BERT": lambda: make("BertForSequenceClassification", **TABLE, **SIZES, num_labels=3),
    "RoBERTa": lambda: make("RobertaForSequenceClassification", **TABLE, **SIZES, num_labels=3, pad_token_id=PAD),
    "DistilBERT": lambda: make("DistilBertForSequenceClassification", **TABLE, **DISTIL, num_labels=3),
    "Llama": lambda: make("LlamaForSequenceClassification", **TABLE, **SIZES, num_labels=3, pad_token_id=PAD),
    "Qwen2": lambda: make(
        "Qwen2ForSequenceClassification", **TABLE, **SIZES, **SHARED_HEADS, num_labels=3, pad_token_id=PAD
    ),
    "GPT-2": lambda: make("GPT2ForSequenceClassification", **GPT2, num_labels=3, pad_token_id=PAD),
}


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_classifier_of_theirs_is_read_and_goes_back(family: str, tmp_path: Path) -> None:
    theirs, (token_BT, length_B, mask_BT) = CLASSIFIERS[family](), texts()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs").module()
    assert_equal(ours(token_BT, length_B), theirs(token_BT, attention_mask=mask_BT).logits)
    (tmp_path / "ours").mkdir()
    save(tmp_path / "ours", ours)
    back = read_by_them(tmp_path / "ours", type(theirs).__name__)
    assert_equal(ours(token_BT, length_B), back(token_BT, attention_mask=mask_BT).logits)


PRETRAINED: dict[str, Callable[[], nn.Module]] = {
    "BertForSequenceClassification": lambda: make("BertModel", **TABLE, **SIZES),
    "RobertaForSequenceClassification": lambda: make("RobertaForMaskedLM", **TABLE, **SIZES),
    "DistilBertForSequenceClassification": lambda: make("DistilBertForMaskedLM", **TABLE, **DISTIL),
    "LlamaForSequenceClassification": lambda: make("LlamaForCausalLM", **TABLE, **SIZES),
    "GPT2ForSequenceClassification": lambda: make("GPT2LMHeadModel", **GPT2),
}


@pytest.mark.parametrize("kind", PRETRAINED)
def test_a_new_head_over_a_pretrained_body_goes_out_as_theirs(kind: str, tmp_path: Path) -> None:
    PRETRAINED[kind]().save_pretrained(tmp_path / "base")
    loaded, labels = load(tmp_path / "base"), ("down", "up")
    ours: Module
    if isinstance(loaded.config, EncoderConfig):
        with pytest.raises(ModelError, match="no classes"):
            loaded.module()
        ours, pad = bert.with_head(loaded.config, loaded.weights, labels, 0.1), loaded.config.pad_token_id
    else:
        assert isinstance(loaded.config, LlamaConfig)
        ours, pad = decoder_classifier.with_head(loaded.config, loaded.weights, labels, PAD, 0.1), PAD
    (tmp_path / "ours").mkdir()
    save(tmp_path / "ours", ours)
    token_BT, length_B, mask_BT = texts(pad)
    back = read_by_them(tmp_path / "ours", kind)
    assert_equal(ours(token_BT, length_B), back(token_BT, attention_mask=mask_BT).logits)
    assert ours.config == load(tmp_path / "ours").config


SEQ2SEQ = {"marian": "MarianMTModel", "pegasus": "PegasusForConditionalGeneration"}


def targets() -> Tensor:
    """What a decoder reads; each begins with the start token."""
    token_BT = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(2))
    token_BT[:, 0] = 1
    return token_BT


@pytest.mark.parametrize("norm_first", [False, True], ids=["marian", "pegasus"])
@pytest.mark.parametrize("activation", ["ReLU", "GELU"])
def test_an_encoder_decoder_from_scratch_is_theirs_and_generates_the_same(
    activation: str, norm_first: bool, tmp_path: Path
) -> None:
    shape = Shape(2, 48, 4, activation=activation)  # type: ignore[arg-type]
    config = scratch.encoder_decoder(shape, max_length=LENGTH, norm_first=norm_first, **TOKENS)
    ours, (source_BS, length_B, mask_BS) = shaken(empty(config)), texts()
    save(tmp_path, ours)  # type: ignore[arg-type]
    assert load(tmp_path).config == config
    theirs = read_by_them(tmp_path, SEQ2SEQ[config.layout])
    logits_BTV = theirs(source_BS, attention_mask=mask_BS, decoder_input_ids=targets()).logits
    assert_equal(ours(source_BS, length_B, targets()), logits_BTV)
    for beams in (1, 3):
        answer_BT = theirs.generate(  # type: ignore[operator]
            source_BS, attention_mask=mask_BS, num_beams=beams, max_length=12, do_sample=False
        )
        without = [[token for token in row[1:] if token not in (PAD, 2)] for row in answer_BT.tolist()]
        assert ours.generate(source_BS, length_B, 11, beams=beams) == without  # type: ignore[operator]


@pytest.mark.parametrize("layout", SEQ2SEQ)
def test_an_encoder_decoder_of_theirs_is_read(layout: str, tmp_path: Path) -> None:
    halves = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 80))
    }
    ids = {"pad_token_id": PAD, "eos_token_id": 2, "decoder_start_token_id": PAD}
    theirs = make(SEQ2SEQ[layout], **TABLE, d_model=48, **halves, **ids)
    theirs.save_pretrained(tmp_path)
    ours, (source_BS, length_B, mask_BS) = load(tmp_path).module(), texts()
    logits_BTV = theirs(source_BS, attention_mask=mask_BS, decoder_input_ids=targets()).logits
    assert_equal(ours(source_BS, length_B, targets()), logits_BTV)


def test_an_encoder_decoder_with_two_vocabularies_is_refused_by_name() -> None:
    config = scratch.encoder_decoder(Shape(2, 48, 4, activation="ReLU"), max_length=LENGTH, **TOKENS)
    document = replace(config).to_json() | {"share_encoder_decoder_embeddings": False}
    with pytest.raises(ModelError, match="share_encoder_decoder_embeddings is false"):
        type(config).from_json(document)

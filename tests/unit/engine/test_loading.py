"""From a directory to a warm engine, and a sentence for every directory that is not a model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kubeformer.contract.base import Location
from kubeformer.contract.names import MODEL_CARD, Reason
from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.data.tokenizer import TextTokenizer
from kubeformer_runtime.engine.loading import ClassifierModel, LanguageModel, load_engine
from kubeformer_runtime.model.digest import digest
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.weights import save
from tests.unit.engine.builders import EOS, outputs, request, tiny_core, write_model
from tests.unit.model.builders import classifier_config, random_classifier


def loaded(settings: ServerSettings) -> LanguageModel | ClassifierModel:
    return load_engine(settings, threads=1)


def settings(directory: Path, **changes: object) -> ServerSettings:
    fields = {
        "name": "tiny",
        "namespace": "default",
        "model": Location(uri="pvc://models/tiny", path=str(directory)),
        "served_names": ["tiny"],
        "max_num_seqs": 4,
        "kv_cache_megabytes": 1,
        **changes,
    }
    return ServerSettings(**fields)  # type: ignore[arg-type]


def write_classifier(directory: Path, card: dict[str, object] | None = None) -> TextTokenizer:
    """A random classifier with a tokenizer trained on a few words."""
    directory.mkdir()
    tokenizer = TextTokenizer.train(["win a prize", "see you at noon"], 259, frame_end=True)
    save(directory, random_classifier(classifier_config(vocabulary_size=tokenizer.vocabulary_size)))
    tokenizer.save(directory)
    if card is not None:
        (directory / MODEL_CARD).write_text(json.dumps(card))
    return tokenizer


def test_a_language_model_comes_out_warm_and_answers_as_the_same_weights_in_memory(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m")
    model = loaded(settings(directory, model=Location(uri="pvc://m/m", path=str(directory), digest=digest(directory))))
    assert isinstance(model, LanguageModel)
    assert (model.max_model_len, model.vocab_size, model.dtype) == (128, 300, torch.float32)
    assert model.generation == {"bos_token_id": 1, "eos_token_id": EOS}
    assert model.core.stats().kv_cache_usage == 0.0
    item = request("r", b"hello", max_tokens=10)
    assert outputs(model.core, item) == outputs(tiny_core(block_size=16), item)


def test_a_classifier_reads_texts_as_they_were_in_training(tmp_path: Path) -> None:
    card = {"settings": {"data": {"prepare": {"normalize": "NFKC"}}}}
    tokenizer = write_classifier(tmp_path / "c", card)
    model = loaded(settings(tmp_path / "c"))
    assert isinstance(model, ClassifierModel)
    texts = ["ｗｉｎ   now\x07 ", "a much longer text than fits sixteen tokens"]
    cleaned = ["win now", "a much longer text than fits sixteen tokens"]
    assert model.encode(texts) == tokenizer.encode_framed(cleaned, 16)
    assert model.encode([""]) == [[1, 2]]


def test_a_classifier_from_elsewhere_gets_texts_as_they_are(tmp_path: Path) -> None:
    tokenizer = write_classifier(tmp_path / "c")
    model = loaded(settings(tmp_path / "c"))
    assert isinstance(model, ClassifierModel)
    assert model.encode(["a  b"]) == tokenizer.encode_framed(["a  b"], 16)


def test_a_classifier_has_no_adapters_drafts_or_quantised_weights(tmp_path: Path) -> None:
    write_classifier(tmp_path / "c")
    for changes, words in (
        ({"quantization": "Int8"}, "engine.quantization is for models that write text, and this one is a classifier"),
        ({"speculative_tokens": 2}, "engine.speculativeTokens is for"),
    ):
        with pytest.raises(ModelError, match=words):
            loaded(settings(tmp_path / "c", **changes))


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def write(name: str, content: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / name).write_text(content)

    return change


@pytest.mark.parametrize(
    ("damage", "reason", "words"),
    [
        (remove("config.json"), Reason.MODEL_NOT_FOUND, "config.json"),
        (remove("model.safetensors"), Reason.MODEL_NOT_FOUND, "model.safetensors"),
        (remove("tokenizer.json"), Reason.MODEL_NOT_FOUND, "tokenizer.json"),
        (write("config.json", "{"), Reason.MODEL_INVALID, "not JSON"),
        (write("config.json", '{"architectures": ["Other"]}'), Reason.MODEL_INVALID, "Other"),
        (write("model.safetensors", "garbage"), Reason.MODEL_INVALID, "damaged"),
        (write("tokenizer.json", "{}"), Reason.MODEL_INVALID, "no tokenizer"),
        (write("tokenizer_config.json", "["), Reason.MODEL_INVALID, "not JSON"),
        (write("tokenizer_config.json", '{"eos_token": 7}'), Reason.MODEL_INVALID, "eos_token has to be a string"),
        (write("tokenizer_config.json", '{"eos_token": {"id": 7}}'), Reason.MODEL_INVALID, "eos_token has to be"),
        (write("tokenizer_config.json", '{"chat_template": 7}'), Reason.MODEL_INVALID, "chat_template has to be"),
        (write("generation_config.json", '{"temperature": "hot"}'), Reason.MODEL_INVALID, "temperature has to be"),
        (write("generation_config.json", '{"top_p": 2}'), Reason.MODEL_INVALID, "generation_config.json: top_p is 2"),
        (write("generation_config.json", '{"top_k": 0.5}'), Reason.MODEL_INVALID, "top_k has to be an integer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_directory_is_a_sentence(
    tmp_path: Path, damage: Callable[[Path], None], reason: str, words: str
) -> None:
    damage(write_model(tmp_path / "m"))
    with pytest.raises(ModelError, match=words) as caught:
        loaded(settings(tmp_path / "m"))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_model_length": 129}, "maxModelLength is 129.*128"),
        ({"dtype": "Float16"}, "Float16"),
        ({"kv_cache_megabytes": 0}, "maxModelLength"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_model_are_a_sentence(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    directory = write_model(tmp_path / "m")
    with pytest.raises(ModelError, match=words):
        loaded(settings(directory, **changes))


def test_a_missing_directory_names_the_uri(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pvc://models/tiny") as caught:
        loaded(settings(tmp_path / "nothing"))
    assert caught.value.reason == Reason.MODEL_NOT_FOUND


def test_another_digest_than_the_one_asked_for_is_refused(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m")
    wanted = "sha256:" + "0" * 64
    with pytest.raises(ModelError, match="digest") as caught:
        loaded(settings(directory, model=Location(uri="pvc://m/m", path=str(directory), digest=wanted)))
    assert wanted in str(caught.value)

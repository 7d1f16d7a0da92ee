"""Random encoders of every family as transformers saves them, with a tokenizer of words."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, DistilBertConfig, RobertaConfig, XLMRobertaConfig

from kubeformer.contract.base import Location
from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.engine.encoder_model import EncoderModel
from kubeformer_runtime.engine.loading import load_engine

WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    *(
        "a",
        "cat",
        "sat",
        "on",
        "the",
        "mat",
        "and",
        "looked",
        "at",
        "every",
        "dog",
        "in",
        "town",
        "while",
        "it",
        "rained",
    ),
)
SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BERT = BertConfig(**SIZES, max_position_embeddings=24, num_labels=3)
ROBERTA = RobertaConfig(**SIZES, max_position_embeddings=26, type_vocab_size=1, pad_token_id=1, num_labels=3)
XLM = XLMRobertaConfig(**SIZES, max_position_embeddings=26, type_vocab_size=1, pad_token_id=1, num_labels=1)
DISTIL = DistilBertConfig(
    vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=24, num_labels=2
)
TEXTS = ["a cat", "every dog in town looked at the mat while it rained and a cat sat on it", "rained", "the the the"]


def directory_of(path: Path, kind: type, config: object, **more: object) -> Path:
    """A random model as transformers saves it, with a tokenizer of words that frames texts as BERT's does."""
    torch.manual_seed(0)
    model = kind(config)
    for parameter in model.parameters():  # far from zero, norms and biases too, so that leaving one out shows
        torch.nn.init.normal_(parameter, 0.5 if parameter.dim() < 2 else 0.0, 0.3)
    model.save_pretrained(path)
    if more:
        document = json.loads((path / "config.json").read_text()) | more
        (path / "config.json").write_text(json.dumps(document))
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def settings(path: Path, **changes: object) -> ServerSettings:
    """Settings as the operator writes them."""
    fields = {"name": "e", "namespace": "n", "served_names": ["e"], "model": Location(uri="pvc://e", path=str(path))}
    return ServerSettings(**{**fields, **changes})  # type: ignore[arg-type]


def loaded(path: Path, **changes: object) -> EncoderModel:
    """The directory as a server loads it."""
    model = load_engine(settings(path, **changes), threads=1)
    assert isinstance(model, EncoderModel)
    return model

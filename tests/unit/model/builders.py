"""Tiny models for tests: quick to make, and no number in them is another's equal, so that mix-ups show."""

from typing import TypeVar

import torch

from kubeformer_runtime.model.classifier import Classifier
from kubeformer_runtime.model.config import ClassifierConfig, LlamaConfig
from kubeformer_runtime.model.llama import Llama

torch.set_num_threads(1)  # the tensors are tiny, and others use the machine too
Module = TypeVar("Module", bound=torch.nn.Module)


def llama_config(**changes: object) -> LlamaConfig:
    """Two layers, six heads that share two key-value heads."""
    fields = {
        "vocabulary_size": 97,
        "width": 48,
        "layers": 2,
        "heads": 6,
        "key_value_heads": 2,
        "head_width": 8,
        "mlp_width": 80,
        "max_length": 64,
        "bos_token_id": 1,
        "eos_token_ids": (2,),
    }
    return LlamaConfig(**{**fields, **changes})  # type: ignore[arg-type]


def classifier_config(**changes: object) -> ClassifierConfig:
    """Two layers, four heads, three labels."""
    fields = {
        "vocabulary_size": 97,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "key_value_heads": 4,
        "mlp_width": 64,
        "max_length": 16,
        "labels": ("ham", "spam", "neither"),
    }
    return ClassifierConfig(**{**fields, **changes})  # type: ignore[arg-type]


def random_llama(config: LlamaConfig, seed: int = 0) -> Llama:
    """Every parameter random and far from zero, norms and biases too, so that leaving one out shows."""
    torch.manual_seed(seed)
    return _shaken(Llama(config))


def random_classifier(config: ClassifierConfig, seed: int = 0) -> Classifier:
    """See random_llama."""
    torch.manual_seed(seed)
    return _shaken(Classifier(config))


def random_tokens(config: LlamaConfig | ClassifierConfig, rows: int, length: int, seed: int = 1) -> torch.Tensor:
    """(rows, length) token ids."""
    return torch.randint(0, config.vocabulary_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def _shaken(module: Module) -> Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.dim() < 2 else 0.0, 0.2)
    return module.eval()

"""The Transformer, written to be read: a Llama-family decoder, a text classifier, Hugging Face's layout in and out.

    from kubeformer_runtime.model import load
    loaded = load("/models/spam", torch.float32, "cpu")     # .config, .weights, .module()

`config` says what a model is, `layers`, `llama` and `classifier` compute it, `weights` reads and writes it,
`digest` names it. Torch is imported with `load`, not with `config` or `digest`.
"""

from typing import TYPE_CHECKING, Any

from kubeformer_runtime.model.config import ClassifierConfig, LlamaConfig, ModelConfig, read_config
from kubeformer_runtime.model.errors import ModelError

if TYPE_CHECKING:
    from kubeformer_runtime.model.weights import LoadedModel, load

__all__ = [
    "ClassifierConfig",
    "LlamaConfig",
    "LoadedModel",
    "ModelConfig",
    "ModelError",
    "load",
    "read_config",
]


def __getattr__(name: str) -> Any:
    """Imports torch only when weights are asked for (PEP 562)."""
    if name in ("LoadedModel", "load"):
        from kubeformer_runtime.model import weights

        return getattr(weights, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

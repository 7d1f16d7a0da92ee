"""ServerSettings: everything an engine's pod needs to know, resolved and frozen by the operator."""

from typing import Literal

from pydantic import Field

from kubeformer.contract.base import Document, Location


class SamplingDefaults(Document):
    """The deployment's policy: a request's own value comes first, then this, then generation_config.json."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


class Adapter(Document):
    """A LoRA adapter in PEFT's layout, served under its own model name beside the base model."""

    name: str
    location: Location


class ServerSettings(Document):
    """The whole document. `model.digest`, where given, is checked against the directory before serving."""

    name: str
    namespace: str
    model: Location
    served_names: list[str]  # the first is what responses call the model
    dtype: Literal["Auto", "Float32", "BFloat16", "Float16"] = "Auto"
    quantization: Literal["None", "Int8", "Int4"] = "None"  # of weights, at load; activations and cache stay in dtype
    numerics: Literal["Fast", "Reproducible"] = "Fast"  # Reproducible: the same tokens whatever else is in the batch
    speculative_tokens: int = 0  # n-gram drafts a step and sequence; 0: none
    adapters: list[Adapter] = Field(default_factory=list)
    max_model_length: int | None = None  # tokens; None: what the model was made for
    max_num_seqs: int = 64  # sequences running at once
    max_num_batched_tokens: int = 2048  # tokens a step, prompts and answers together
    kv_cache_megabytes: int | None = None  # None: from the container's memory limit
    sampling: SamplingDefaults = SamplingDefaults()
    drain_seconds: int = 300

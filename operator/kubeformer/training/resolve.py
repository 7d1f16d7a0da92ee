"""Resolve: what a TrainingJob's spec leaves open, chosen from task, model and installation, once, at its first start.

What is chosen stands in `status.resolved` and is read from there ever after, so that neither an upgrade nor a
changed chart alters a job that runs.
"""

from collections.abc import Mapping
from typing import Any

from kubeformer.api.common import significant
from kubeformer.api.training_job import Architecture, TrainingJobSpec
from kubeformer.api.uri import PvcUri
from kubeformer.kit.artifacts import published_by
from kubeformer.kit.quantities import amount, mebibytes, with_defaults
from kubeformer.kit.settings import OperatorSettings
from kubeformer.training.observe import Observed, uri_of

DEFAULT_EPOCHS = 3
SMALL: Mapping[str, Architecture] = {
    "textClassification": Architecture(layers=2, width=128, heads=4, activation="GELU", dropout=0.1),
    "languageModel": Architecture(layers=4, width=256, heads=8, activation="SwiGLU", dropout=0.0),
    "textToText": Architecture(layers=3, width=256, heads=4, activation="ReLU", dropout=0.1),
    "recommendation": Architecture(layers=2, width=64, heads=2, activation="GELU", dropout=0.5),
}
"""The model of a task where the spec names none. Chat and preference need weights; custom brings what it likes."""

_SCRATCH_RATE = {"textClassification": 1e-3, "textToText": 5e-4, "recommendation": 1e-3}  # else, and for wide ones:
_WIDE_RATE = 3e-4
_OBJECTIVE = {
    "textClassification": "validation/accuracy",
    "textToText": "validation/chrf",
    "recommendation": "validation/ndcg@10",
}
_BASE_RATE = {"chat": 2e-5, "preference": 1e-6}  # else:
_OTHER_BASE_RATE = 5e-5
_LORA_RATE = {"preference": 2e-5}  # adapters begin at zero and bear ten times the rate and more; else:
_OTHER_LORA_RATE = 2e-4
SMALL_WIDTH = 512  # up to here a Transformer from scratch bears the higher rate

DEFAULT_REQUESTS = {"cpu": "500m", "memory": "1Gi"}
_RUNTIME_BYTES = 768 * 2**20  # Python, PyTorch and the rows of an ordinary data set
_BYTES_A_PARAMETER = 24  # float32: weight, gradient, AdamW's two moments, the best weights, a copy to write from
_BYTES_AN_ACTIVATION = 4
_ACTIVATIONS_A_TOKEN_AND_LAYER = 24  # of the width each, kept for the backward pass, attention included
_ROWS_A_PASS = 4  # what is set aside for; the trainer takes more at once where there is memory, and fewer where not


def architecture(spec: TrainingJobSpec) -> Architecture | None:
    """The Transformer to train from scratch; None where weights are given."""
    return SMALL.get(spec.task.kind) if spec.model is None else spec.model.architecture


def learning_rate(spec: TrainingJobSpec) -> float:
    """The step size that suits task, size, LoRA and optimizer (Muon's steps are scaled to be as long as AdamW's)."""
    scratch, kind = architecture(spec), spec.task.kind
    if spec.training.optimizer.type == "SGD":
        return 0.1 if scratch is not None else 0.01
    if scratch is not None:
        return _SCRATCH_RATE.get(kind, _WIDE_RATE) if scratch.width <= SMALL_WIDTH else _WIDE_RATE
    if spec.model is not None and spec.model.lora is not None:
        return _LORA_RATE.get(kind, _OTHER_LORA_RATE)
    return _BASE_RATE.get(kind, _OTHER_BASE_RATE)


def objective(spec: TrainingJobSpec) -> tuple[str, str]:
    """What Best means: the metric and its direction."""
    given = spec.training.objective
    if given is not None:
        return given.metric, given.direction or _better(given.metric)
    metric = _OBJECTIVE.get(spec.task.kind, "validation/loss")
    return metric, _better(metric)


def _better(metric: str) -> str:
    return "Minimize" if metric in ("validation/loss", "validation/perplexity") else "Maximize"


def resolve(seen: Observed) -> dict[str, Any]:
    """`status.resolved` of a job that is about to start. The checks have passed, so that all places are known."""
    assert seen.spec is not None
    spec, settings = seen.spec, seen.settings
    metric, direction = objective(spec)
    resolved: dict[str, Any] = {
        "image": spec.pod.image or settings.worker_image,
        "learningRate": significant(spec.training.learning_rate or learning_rate(spec)),
        "objectiveMetric": metric,
        "objectiveDirection": direction,
        "checkpointUri": str(checkpoint_place(spec, settings, seen.name, seen.meta.uid)),
        "outputUri": str(output_place(spec, settings, seen.name)),
    }
    if spec.training.steps is not None:
        resolved["steps"] = spec.training.steps
    elif spec.task.custom is None:
        resolved["epochs"] = spec.training.epochs or DEFAULT_EPOCHS
    if spec.model is not None and spec.model.uri is not None:
        resolved["baseUri"] = spec.model.uri
    elif seen.base is not None:
        base = published_by(seen.base)
        resolved["baseUri"] = base.uri
        if base.digest is not None:
            resolved["baseDigest"] = base.digest
    resume = spec.checkpoint.resume_from
    if resume is not None:
        newest = checkpoint_of(seen.earlier) or ""
        resolved["resumeUri"] = resume.uri or newest.rpartition("/")[0] or None  # the folder: its newest whole one
    return {name: value for name, value in resolved.items() if value is not None}


def checkpoint_of(job: Any) -> str | None:
    """The URI of the last checkpoint of a TrainingJob as the API server stores it; None: it has none yet."""
    found: Any = job
    for step in ("status", "checkpoint", "uri"):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found if isinstance(uri_of(found), PvcUri) else None


def checkpoint_place(spec: TrainingJobSpec, settings: OperatorSettings, name: str, uid: str) -> PvcUri:
    """A directory that is this job's alone, also where its storage is shared, so that all of it may be deleted."""
    own = f"{name}-{uid[:8]}"
    if spec.checkpoint.storage is not None and isinstance(given := uri_of(spec.checkpoint.storage.uri), PvcUri):
        return given / own
    return _shared(settings) / "checkpoints" / own


def output_place(spec: TrainingJobSpec, settings: OperatorSettings, name: str) -> PvcUri:
    """The directory that becomes the model: exactly what the spec names, else models/NAME below the storage."""
    if spec.output.storage is not None and isinstance(given := uri_of(spec.output.storage.uri), PvcUri):
        return given
    return _shared(settings) / "models" / name


def _shared(settings: OperatorSettings) -> PvcUri:
    found = uri_of(settings.storage_uri)
    return found if isinstance(found, PvcUri) else PvcUri("kubeformer")


def worker_resources(spec: TrainingJobSpec, settings: OperatorSettings) -> dict[str, dict[str, str]]:
    """Requests and limits of a worker. What is left out follows from the installation and from the model's size."""
    defaults = dict(settings.worker_requests or DEFAULT_REQUESTS)
    guess = memory_bytes(spec)
    if guess is not None and guess > (amount(defaults.get("memory", 0)) or 0):
        defaults["memory"] = mebibytes(guess)
    return with_defaults(spec.workers.resources.limits, spec.workers.resources.requests, defaults)


def memory_bytes(spec: TrainingJobSpec) -> int | None:
    """What training a Transformer from scratch will need, in all processes of a worker; None: its size is not known."""
    scratch = architecture(spec)
    if scratch is None:
        return None
    tokenizer = spec.data.tokenizer.train if spec.data is not None and spec.data.tokenizer is not None else None
    vocabulary = tokenizer.vocabulary_size if tokenizer is not None else 8192
    mlp = scratch.mlp_width or 4 * scratch.width
    layers = 2 * scratch.layers if spec.task.text_to_text is not None else scratch.layers  # an encoder and a decoder
    parameters = vocabulary * scratch.width + layers * scratch.width * (4 * scratch.width + 3 * mlp)
    a_token = layers * scratch.width * _ACTIVATIONS_A_TOKEN_AND_LAYER
    if spec.task.text_classification is None:
        a_token += 2 * vocabulary  # logits and their gradient
    length = _length(spec)
    each = _RUNTIME_BYTES + parameters * _BYTES_A_PARAMETER + _ROWS_A_PASS * length * a_token * _BYTES_AN_ACTIVATION
    return spec.workers.processes_per_worker * each


def _length(spec: TrainingJobSpec) -> int:
    """Tokens of a row at most."""
    task = spec.task
    if task.text_classification is not None:
        return task.text_classification.max_length
    if task.text_to_text is not None:
        return max(task.text_to_text.max_source_length, task.text_to_text.max_target_length)
    if task.recommendation is not None:
        return task.recommendation.max_length
    decoder = task.language_model or task.chat or task.preference
    return 512 if decoder is None else decoder.sequence_length

"""Resolve: what a TrainingJob's spec leaves open, chosen from task, model and installation, once, at its first start.

What is chosen stands in `status.resolved` and is read from there ever after, so that neither an upgrade nor a
changed chart alters a job that runs.
"""

from typing import Any

from kubeformer.api.common import significant
from kubeformer.api.training_job import Architecture, TrainingJobSpec
from kubeformer.api.uri import PvcUri
from kubeformer.kit.artifacts import published_by
from kubeformer.kit.quantities import amount, mebibytes, with_defaults
from kubeformer.kit.settings import OperatorSettings
from kubeformer.training.observe import Observed, uri_of

DEFAULT_EPOCHS = 3
CLASSIFIER = Architecture(layers=2, width=128, heads=4, activation="GELU", dropout=0.1)
LANGUAGE_MODEL = Architecture(layers=4, width=256, heads=8, activation="SwiGLU", dropout=0.0)
SMALL_WIDTH = 512  # up to here a Transformer from scratch bears the higher rate

DEFAULT_REQUESTS = {"cpu": "500m", "memory": "1Gi"}
_RUNTIME_BYTES = 768 * 2**20  # Python, PyTorch and the rows of an ordinary data set
_BYTES_A_PARAMETER = 24  # float32: weight, gradient, AdamW's two moments, the best weights, a copy to write from
_BYTES_AN_ACTIVATION = 4
_ACTIVATIONS_A_TOKEN_AND_LAYER = 24  # of the width each, kept for the backward pass, attention included
_ROWS_A_PASS = 4  # what is set aside for; the trainer takes more at once where there is memory, and fewer where not


def architecture(spec: TrainingJobSpec) -> Architecture | None:
    """The Transformer to train from scratch; None where weights are given."""
    if spec.model is None:
        return CLASSIFIER if spec.task.text_classification is not None else LANGUAGE_MODEL
    return spec.model.architecture


def learning_rate(spec: TrainingJobSpec) -> float:
    """The step size that suits task, model and optimizer."""
    scratch = architecture(spec)
    if spec.training.optimizer.type == "SGD":
        return 0.1 if scratch is not None else 0.01
    if scratch is None:
        return 5e-5
    small = scratch.width <= SMALL_WIDTH
    return 1e-3 if spec.task.text_classification is not None and small else 3e-4


def objective(spec: TrainingJobSpec) -> tuple[str, str]:
    """What Best means: the metric and its direction."""
    given = spec.training.objective
    if given is not None:
        return given.metric, given.direction or ("Maximize" if given.metric.endswith("accuracy") else "Minimize")
    if spec.task.text_classification is not None:
        return "validation/accuracy", "Maximize"
    return "validation/loss", "Minimize"


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
    else:
        resolved["epochs"] = spec.training.epochs or DEFAULT_EPOCHS
    if spec.model is not None and spec.model.uri is not None:
        resolved["baseUri"] = spec.model.uri
    elif seen.base is not None:
        base = published_by(seen.base)
        resolved["baseUri"] = base.uri
        if base.digest is not None:
            resolved["baseDigest"] = base.digest
    return {name: value for name, value in resolved.items() if value is not None}


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
    vocabulary = spec.data.tokenizer.train.vocabulary_size if spec.data.tokenizer is not None else 8192
    mlp = scratch.mlp_width or 4 * scratch.width
    parameters = vocabulary * scratch.width + scratch.layers * scratch.width * (4 * scratch.width + 3 * mlp)
    length = (
        spec.task.text_classification.max_length
        if spec.task.text_classification is not None
        else spec.task.language_model.sequence_length
        if spec.task.language_model is not None
        else 512
    )
    a_token = scratch.layers * scratch.width * _ACTIVATIONS_A_TOKEN_AND_LAYER
    if spec.task.language_model is not None:
        a_token += 2 * vocabulary  # logits and their gradient
    each = _RUNTIME_BYTES + parameters * _BYTES_A_PARAMETER + _ROWS_A_PASS * length * a_token * _BYTES_AN_ACTIVATION
    return spec.workers.processes_per_worker * each

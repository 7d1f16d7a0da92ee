"""Publishing: a model directory in Hugging Face's layout with kubeformer.json beside, there whole or not at all.

The checkpoint directory keeps a note of it, so that a worker started again after the end finds nothing to do.
"""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ValidationError

from kubeformer.contract.job import JobSettings
from kubeformer.contract.names import MODEL_CARD
from kubeformer.contract.progress import Artifact, Progress
from kubeformer_runtime.data.prepared import DataReport
from kubeformer_runtime.data.tokenizer import TextTokenizer
from kubeformer_runtime.durable import new_directory, write_text
from kubeformer_runtime.model.digest import digest
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.weights import save
from kubeformer_runtime.trainer.adapter import publish_adapter, to_publish
from kubeformer_runtime.trainer.state import State
from kubeformer_runtime.trainer.tasks import Network

NOTE = "published.json"


def publish(
    settings: JobSettings,
    network: Network,
    tokenizer: TextTokenizer | None,
    report: DataReport,
    state: State,
    step: int,
    metrics: dict[str, float],
) -> Artifact:
    """Writes the model to `output.location.path`, replacing one that is there. OSError where storage refuses."""
    with new_directory(Path(settings.output.location.path), replace=True) as fresh:
        save(fresh, to_publish(settings, network))
        adapter = publish_adapter(settings, network, fresh)
        if tokenizer is not None:
            tokenizer.save(fresh)
        name = digest(fresh)
        artifact = Artifact(uri=settings.output.location.uri, digest=name, step=step, metrics=metrics)
        card = model_card(settings, artifact, report, state) | ({} if adapter is None else {"adapter": adapter})
        (fresh / MODEL_CARD).write_text(json.dumps(card, indent=2) + "\n", "utf-8")
    return artifact


def model_card(settings: JobSettings, artifact: Artifact, report: DataReport, state: State) -> dict[str, object]:
    """Where a model comes from: the content of kubeformer.json."""
    base = settings.model.base
    return {
        "name": settings.name,
        "namespace": settings.namespace,
        "uid": settings.uid,
        "digest": artifact.digest,
        "step": artifact.step,
        "metrics": {name: _finite(value) for name, value in artifact.metrics.items()},
        "data": {
            "uri": ", ".join(source.location.uri for source in settings.data.all_sources),
            "digest": report.digest,
            "trainRows": report.train.rows,
            "validationRows": report.validation.rows,
            "testRows": report.test.rows if report.test else 0,
            "vocabularySize": report.vocabulary_size,
        },
        "base": None if base is None else {"uri": base.uri, "digest": digest(base.path)},
        "seed": settings.training.seed,
        "worldSize": state.world_size,
        "settings": settings.model_dump(mode="json", include={"task", "model", "data", "training"}),
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in ("kubeformer", "torch", "tokenizers", "safetensors")},
    }


def write_note(directory: Path, progress: Progress) -> None:
    """Keeps the last Progress beside the checkpoints."""
    write_text(directory / NOTE, progress.model_dump_json())


def read_note(settings: JobSettings) -> Progress | None:
    """The last Progress of a run that has published already; None where it has not, or its model is gone."""
    try:
        content = (Path(settings.checkpoint.directory) / NOTE).read_text("utf-8")
        progress = Progress.model_validate_json(content)
        if progress.artifact is None or digest(settings.output.location.path) != progress.artifact.digest:
            return None
    except (OSError, ValidationError, ModelError):
        return None
    return progress


def _finite(value: float) -> float | str:
    """JSON has no NaN."""
    return value if abs(value) < float("inf") else str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"

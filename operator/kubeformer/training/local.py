"""A TrainingJob's settings without a cluster: `python -m kubeformer.training.local < job.yaml`.

Standard input holds a TrainingJob as YAML or JSON, ConfigMaps beside it if it names any. Standard output gets one
JSON object: `settings`, what a worker would be told (paths as in a pod, which `kubeformer-train` maps to folders),
and `configMaps`, their data by name. Exit code 2, with sentences on standard error: the job is not valid.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from kubeformer.api.rules import sentences
from kubeformer.api.training_job import TrainingJob
from kubeformer.contract.job import JobSettings
from kubeformer.training.document import settings_document

_OURS = "pvc://kubeformer"  # what the installation's storage is in a cluster


def settings_of(body: Mapping[str, Any]) -> JobSettings:
    """The settings of a TrainingJob as its owner wrote it. Raises pydantic.ValidationError."""
    job = TrainingJob.parse(body)
    spec, name = job.spec, job.metadata.name
    resolved: dict[str, Any] = {
        "checkpointUri": f"{_OURS}/checkpoints/{name}",
        "outputUri": spec.output.storage.uri if spec.output.storage is not None else f"{_OURS}/models/{name}",
    }
    if spec.model is not None:
        ref = spec.model.training_job_ref
        resolved["baseUri"] = spec.model.uri if ref is None else f"{_OURS}/models/{ref.name}"
    resume = spec.checkpoint.resume_from
    if resume is not None:
        earlier = resume.training_job_ref
        resolved["resumeUri"] = resume.uri if earlier is None else f"{_OURS}/checkpoints/{earlier.name}"
    return settings_document(spec, resolved, name=name, namespace="default", uid=f"local-{name}")


def read(text: str) -> list[Any]:
    """The documents of a YAML stream; JSON needs no YAML. Raises ValueError."""
    try:
        return [json.loads(text)]
    except ValueError:
        pass
    try:
        import yaml
    except ImportError:
        raise ValueError("reading YAML needs the package PyYAML; install it, or write the job as JSON") from None
    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise ValueError(f"this is no YAML: {error}") from None


def result(documents: Iterable[Any]) -> dict[str, Any]:
    """What is printed. Raises ValueError where there is not exactly one TrainingJob."""
    objects = [document for document in documents if isinstance(document, Mapping)]
    jobs = [document for document in objects if document.get("kind") == "TrainingJob"]
    if len(jobs) != 1:
        raise ValueError(f"there are {len(jobs)} objects of kind TrainingJob; one is needed")
    maps = {
        str(found["metadata"]["name"]): dict(found.get("data") or {})
        for found in objects
        if found.get("kind") == "ConfigMap"
    }
    return {"settings": settings_of(jobs[0]).model_dump(mode="json"), "configMaps": maps}


def main() -> int:
    """See the module's docstring."""
    try:
        print(json.dumps(result(read(sys.stdin.read()))))
    except ValidationError as error:
        print("\n".join(sentences(error)), file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Document: what the workers of a TrainingJob are told (`contract.job.JobSettings`), from spec and `status.resolved`.

Pure; the same job renders the same bytes, after which its settings are named.
"""

from collections.abc import Mapping
from typing import Any

from kubeformer.api.training_input import Data
from kubeformer.api.training_job import Architecture, Tracker, TrainingJobSpec
from kubeformer.api.uri import ConfigMapUri, RemoteUri, Uri
from kubeformer.contract import job as contract
from kubeformer.contract import names
from kubeformer.contract.base import Location
from kubeformer.training.observe import uri_of
from kubeformer.training.resolve import DEFAULT_EPOCHS, architecture, learning_rate, objective

DOWNLOADS_DIRECTORY = f"{names.SCRATCH_DIRECTORY}/downloads"


def path_of(uri: Uri) -> str:
    """Where a pod finds what a URI names; for a remote one, where the trainer puts what it downloads."""
    if isinstance(uri, ConfigMapUri):
        return f"{names.CONFIG_MAPS_DIRECTORY}/{uri.name}/{uri.key}"
    if isinstance(uri, RemoteUri):
        return f"{DOWNLOADS_DIRECTORY}/{uri.scheme}/{uri.rest}"
    return f"{names.CLAIMS_DIRECTORY}/{uri.claim}" + (f"/{uri.path}" if uri.path else "")


def location(text: object, digest: object = None) -> Location:
    """A URI together with its path in the pod."""
    uri = uri_of(text)
    path = path_of(uri) if uri is not None else ""
    return Location(uri=str(text), path=path, digest=str(digest) if digest else None)


def settings_document(
    spec: TrainingJobSpec, resolved: Mapping[str, Any], *, name: str, namespace: str, uid: str
) -> contract.JobSettings:
    """The whole document."""
    resume = resolved.get("resumeUri")
    return contract.JobSettings(
        name=name,
        namespace=namespace,
        uid=uid,
        task=_task(spec),
        model=_model(spec, resolved),
        data=_data(spec.data),
        training=_training(spec, resolved),
        workers=contract.Workers(
            replicas=spec.workers.replicas,
            processes_per_worker=spec.workers.processes_per_worker,
        ),
        checkpoint=contract.Checkpoint(
            directory=location(resolved.get("checkpointUri")).path,
            interval_seconds=spec.checkpoint.interval_seconds,
            keep=spec.checkpoint.keep,
            resume_from=location(resume) if resume else None,
        ),
        recovery=contract.Recovery(
            max_restarts=spec.recovery.max_restarts, hang_timeout_seconds=spec.recovery.hang_timeout_seconds
        ),
        output=contract.Output(location=location(resolved.get("outputUri")), publish=spec.output.publish),
        tracking=tuple(_tracker(tracker, resolved) for tracker in spec.tracking),
    )


def _training(spec: TrainingJobSpec, resolved: Mapping[str, Any]) -> contract.Training:
    training = spec.training
    metric, direction = objective(spec)
    rate, stopping = training.learning_rate, training.evaluation.early_stopping
    counted = training.steps is not None
    return contract.Training(
        epochs=None if counted else training.epochs or resolved.get("epochs") or DEFAULT_EPOCHS,
        steps=training.steps,
        batch_size=training.batch_size,
        learning_rate=float(resolved.get("learningRate") or learning_rate(spec)) if rate is None else rate,
        optimizer=training.optimizer.type,
        weight_decay=training.optimizer.weight_decay,
        max_gradient_norm=training.optimizer.max_gradient_norm,
        schedule=training.schedule.type,
        warmup_percent=training.schedule.warmup_percent,
        decay_percent=training.schedule.decay_percent,
        objective_metric=metric,
        objective_direction="Maximize" if direction == "Maximize" else "Minimize",
        evaluate_every_epochs=training.evaluation.every_epochs or 1,
        evaluate_every_steps=training.evaluation.every_steps,
        early_stopping=None
        if stopping is None
        else contract.EarlyStopping(patience=stopping.patience, min_delta=stopping.min_delta),
        precision=training.precision,
        activation_checkpointing=training.activation_checkpointing,
        seed=training.seed,
    )


def _task(spec: TrainingJobSpec) -> contract.Task:
    """Members and fields of the task have the same names in the API and in the contract, but for files."""
    task = spec.task
    if task.text_classification is not None:
        return contract.TextClassification(**task.text_classification.model_dump(by_alias=False))
    if task.language_model is not None:
        return contract.LanguageModel(**task.language_model.model_dump(by_alias=False))
    if task.chat is not None:
        template = None if task.chat.template is None else location(task.chat.template.uri)
        return contract.Chat(**task.chat.model_dump(by_alias=False, exclude={"template"}), template=template)
    if task.preference is not None:
        return contract.Preference(**task.preference.model_dump(by_alias=False))
    if task.text_to_text is not None:
        return contract.TextToText(**task.text_to_text.model_dump(by_alias=False))
    if task.recommendation is not None:
        return contract.Recommendation(**task.recommendation.model_dump(by_alias=False))
    custom = task.custom
    assert custom is not None, "the schema wants exactly one task"
    return contract.Custom(
        command=tuple(custom.command),
        packages=tuple(custom.packages),
        code=None if custom.code is None else location(custom.code.uri),
        git=None if custom.git is None else contract.Git(url=custom.git.url, revision=custom.git.revision),
        total_steps=custom.total_steps,
    )


def _model(spec: TrainingJobSpec, resolved: Mapping[str, Any]) -> contract.Model:
    scratch: Architecture | None = architecture(spec)
    if scratch is not None:
        return contract.Model(architecture=contract.Architecture(**scratch.model_dump(by_alias=False)))
    if not resolved.get("baseUri"):
        return contract.Model()  # of a custom task
    lora = spec.model.lora if spec.model is not None else None
    return contract.Model(
        base=location(resolved["baseUri"], resolved.get("baseDigest")),
        lora=None
        if lora is None
        else contract.Lora(
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            targets=tuple(lora.targets),
            base_weights=lora.base_weights,
        ),
    )


def _data(data: Data | None) -> contract.Data:
    if data is None:
        return contract.Data()
    prepare, dedupe = data.prepare, data.prepare.deduplicate
    method = dedupe.method or ("Near" if dedupe.similarity_percent is not None else "Exact")
    validation, test, tokenizer = data.validation, data.test, data.tokenizer
    trained = tokenizer.train if tokenizer is not None else None
    return contract.Data(
        source=None if data.uri is None else location(data.uri),
        sources=tuple(
            contract.Source(name=source.name, location=location(source.uri), weight=source.weight, format=source.format)
            for source in data.sources or ()
        ),
        format=data.format,
        prepare=contract.Prepare(
            normalize=prepare.normalize,
            deduplicate=method,
            similarity_percent=dedupe.similarity_percent or 80,
            min_characters=prepare.min_characters,
            max_bad_rows_percent=prepare.max_bad_rows_percent,
        ),
        validation=None if validation.uri is None else location(validation.uri),
        validation_percent=validation.percent or 10,
        keep_together=validation.keep_together,
        test=None if test is None else location(test.uri),
        tokenizer=None if tokenizer is None or tokenizer.uri is None else location(tokenizer.uri),
        vocabulary_size=8192 if trained is None else trained.vocabulary_size,
    )


def _tracker(tracker: Tracker, resolved: Mapping[str, Any]) -> contract.Tracker:
    if tracker.mlflow is not None:
        uri, project = tracker.mlflow.uri, tracker.mlflow.experiment
        return contract.Tracker(name=tracker.name, kind="MLflow", uri=uri, project=project)
    if tracker.wandb is not None:
        return contract.Tracker(name=tracker.name, kind="WandB", project=tracker.wandb.project)
    directory = f"{location(resolved.get('checkpointUri')).path}/tensorboard/{tracker.name}"
    return contract.Tracker(name=tracker.name, kind="TensorBoard", directory=directory)

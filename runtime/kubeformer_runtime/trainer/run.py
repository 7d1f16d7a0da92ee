"""From settings to a published model: the order of things, and what ends them early.

`run` is what a rank does. It returns the exit code for everything that a job's owner or the cluster can cause;
what it raises is a fault of the machine or of a peer, after which the launcher starts the ranks again.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from kubeformer.contract.job import JobSettings
from kubeformer.contract.names import ENV_ATTEMPT, ExitCode
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepare import prepare
from kubeformer_runtime.data.prepared import Prepared
from kubeformer_runtime.heartbeat import Heartbeat
from kubeformer_runtime.kernels.training import load_training_kernels
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.trainer.budget import fits, rows_per_pass
from kubeformer_runtime.trainer.errors import InvalidJob, Stopped
from kubeformer_runtime.trainer.fused import can_fuse
from kubeformer_runtime.trainer.loop import Loop, Surroundings
from kubeformer_runtime.trainer.machine import memory_bytes, threads
from kubeformer_runtime.trainer.metrics import operations_per_token, peak
from kubeformer_runtime.trainer.networks import make_network, model_digest
from kubeformer_runtime.trainer.precision import LARGE, choose_precision
from kubeformer_runtime.trainer.publish import publish, read_note, write_note
from kubeformer_runtime.trainer.report import Clock, Reporter
from kubeformer_runtime.trainer.resuming import resume
from kubeformer_runtime.trainer.schedule import count_steps
from kubeformer_runtime.trainer.state import Fingerprint, State
from kubeformer_runtime.trainer.stop import StopWish
from kubeformer_runtime.trainer.tasks import Network, Task, make_task
from kubeformer_runtime.trainer.world import Place, World


def run(
    settings: JobSettings, environment: Mapping[str, str], heartbeat: Heartbeat, stop: StopWish, clock: Clock
) -> ExitCode:
    """Trains and publishes, or goes on where an earlier start left off, or finds that all is done."""
    place = Place.from_environment(environment)
    attempt = int(environment.get(ENV_ATTEMPT, "1"))
    reporter = Reporter(heartbeat, clock, rank=place.rank, attempt=attempt)
    if (before := read_note(settings)) is not None:
        reporter.progress = before.model_copy(update={"rank": place.rank, "attempt": attempt})
        reporter.phase("Succeeded")
        reporter.log(f"already published: {settings.output.location.uri}")
        return ExitCode.SUCCEEDED
    try:
        _train(settings, place, reporter, stop, clock)
    except Stopped as stopped:
        reporter.log(str(stopped))
        reporter.phase("Stopped")
        return ExitCode.STOPPED
    except (DataError, ModelError, InvalidJob) as error:
        reporter.log(f"{error.reason}: {error}")
        reporter.failed(error.reason, str(error))
        return ExitCode.INVALID
    return ExitCode.SUCCEEDED


def _train(settings: JobSettings, place: Place, reporter: Reporter, stop: StopWish, clock: Clock) -> None:
    torch.set_num_threads(threads(place.local_size))
    if torch.cuda.is_available():
        # Same settings, data and number of ranks: same bits. On CPUs the kernels used here are so anyway (and the
        # call costs seconds of imports); some GPU kernels have no such variant, hence only a warning.
        torch.use_deterministic_algorithms(True, warn_only=True)

    def beat() -> None:
        stop.check()
        reporter.beat()

    stop.check()
    prepared = prepare(settings, beat, rank=place.rank)
    task = make_task(settings, prepared)
    check_objective(settings, task)
    network = make_network(settings, prepared)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    fingerprint = Fingerprint(
        data=prepared.report.digest,
        model=model_digest(settings, network.config),
        batch_size=settings.training.batch_size,
        seed=settings.training.seed,
        total_steps=count_steps(settings.training, task.order.steps_per_epoch),
    )
    stop.deafen()  # a wait for peers hears no signals
    world = World.join(place)
    stop.listen()
    network.to(world.device)
    fast = parameters >= LARGE
    fusable = fast and can_fuse(network.config, 0.0, half=True) and load_training_kernels() is not None
    precision = choose_precision(settings.training, world.device, fusable=fusable, parameters=parameters)
    rows, tight = _rows_per_pass(task, network, parameters, place, world.device)
    automatic = settings.training.activation_checkpointing == "Auto"
    around = Surroundings(
        world=world,
        reporter=reporter,
        stop_wished=lambda: stop.wished,
        clock=clock,
        precision=precision,
        rows_per_pass=rows,
        recompute=settings.training.activation_checkpointing == "Full" or (automatic and tight),
        peak=peak(precision, world.device, torch.get_num_threads()) if fast else None,
        operations_per_token=_operations_per_token(network, parameters, task.row_tokens),
    )
    loop = Loop(
        settings, task, network, prepared.validation, State(fingerprint=fingerprint, world_size=world.size), around
    )
    reporter.update(total_steps=loop.total_steps, total_epochs=loop.total_epochs)
    reporter.resolved(
        parameters=parameters,
        vocabularySize=prepared.report.vocabulary_size,
        trainRows=prepared.report.train.rows,
        validationRows=prepared.report.validation.rows,
        duplicates=prepared.report.duplicates + prepared.report.near_duplicates,
        dataDigest=prepared.report.digest,
        stepsPerEpoch=loop.steps_per_epoch,
        worldSize=world.size,
    )
    _log_start(reporter, prepared, parameters, loop, world)
    resume(loop, settings, fingerprint)
    try:
        loop.run()
        _finish(settings, prepared, loop)
    except Stopped:
        world.leave(reporter.beat)
        raise
    world.leave(reporter.beat)


def check_objective(settings: JobSettings, task: Task) -> None:
    """Raises InvalidJob where the objective is no metric of the task."""
    known = [f"validation/{name}" for name in (*task.metrics, *task.extra_metrics)]
    known += [f"train/{name}" for name in task.metrics]
    if settings.training.objective_metric not in known:
        raise InvalidJob(
            f"spec.training.objective.metric is {settings.training.objective_metric!r}; "
            f"this task measures {', '.join(known)}"
        )


def _rows_per_pass(
    task: Task, network: Network, parameters: int, place: Place, device: torch.device
) -> tuple[int, bool]:
    """Rows a pass, and whether one row is already too much for the memory."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = memory_bytes() // place.local_size
    rows = rows_per_pass(network.config, parameters, task.row_tokens, memory, device.type == "cpu")
    return rows, not fits(network.config, parameters, task.row_tokens, memory)


def _operations_per_token(network: Network, parameters: int, length: int) -> float:
    """For train/mfu; 0 for networks that are no plain stack of layers."""
    config = network.config
    if not isinstance(config, LlamaConfig):
        return 0.0
    table = 0 if config.tied_embeddings else config.vocabulary_size * config.width
    return operations_per_token(parameters - table, config.layers, config.heads * config.head_width, length)


def _finish(settings: JobSettings, prepared: Prepared, loop: Loop) -> None:
    """Puts the weights to publish into the network, scores them on the test split, publishes them."""
    world, reporter, state = loop.world, loop.reporter, loop.state
    reporter.phase("Publishing")
    best = state.best if settings.output.publish == "Best" else None
    if best is not None:
        loop.strategy.use_best()
    metrics = dict(best.metrics if best is not None else state.metrics)
    if prepared.test is not None:
        measures = loop.evaluate(prepared.test)
        metrics |= {f"test/{name}": value for name, value in measures.items()}
    step = best.step if best is not None else state.step

    def write() -> None:
        artifact = publish(settings, loop.network, prepared.tokenizer, prepared.report, state, step, metrics)
        tests = {name: value for name, value in metrics.items() if name.startswith("test/")}
        reporter.succeeded(artifact, tests)
        write_note(Path(settings.checkpoint.directory), reporter.progress)
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        reporter.log(f"published {artifact.uri} {artifact.digest} from step {step}  {values}")

    world.on_first(write, reporter.beat)
    if not world.first and (note := read_note(settings)) is not None:
        reporter.succeeded(note.artifact, {})  # type: ignore[arg-type]


def _log_start(reporter: Reporter, prepared: Prepared, parameters: int, loop: Loop, world: World) -> None:
    report = prepared.report
    reporter.log(
        f"{report.train.rows} rows to train on, {report.validation.rows} to validate, "
        f"{report.test.rows if report.test else 0} to test; vocabulary {report.vocabulary_size}; "
        f"{parameters} parameters; {loop.total_steps} steps on {world.size} rank(s), "
        f"{torch.get_num_threads()} thread(s) each"
    )
    for warning in report.warnings:
        reporter.log(f"warning: {warning}")

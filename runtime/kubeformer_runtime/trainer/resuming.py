"""Where a run begins: at its own newest whole checkpoint, at another job's (`resumeFrom`), or at the first step."""

from pathlib import Path

from kubeformer.contract.job import JobSettings
from kubeformer.contract.names import Reason
from kubeformer_runtime.trainer import checkpoint
from kubeformer_runtime.trainer.checkpoint import Damaged, Snapshot
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.loop import Loop
from kubeformer_runtime.trainer.state import Fingerprint

FIELD = "spec.checkpoint.resumeFrom"


def resume(loop: Loop, settings: JobSettings, fingerprint: Fingerprint) -> None:
    """Puts weights, optimiser and counters where they were; rank 0 chooses, so that all ranks take the same.

    Raises:
        InvalidJob: the checkpoint belongs to another run, or `resumeFrom` names none that fits this model.
    """
    directory, other = Path(settings.checkpoint.directory), settings.checkpoint.resume_from
    if loop.world.first:
        checkpoint.clear(directory)
    if (path := _newest(loop, directory)) is not None:
        snapshot = checkpoint.load(path)
        state = snapshot.state
        if state.fingerprint != fingerprint:
            raise InvalidJob(
                f"the checkpoint at step {state.step} in {directory} belongs to a run over other data or settings "
                f"({state.fingerprint} instead of {fingerprint}); give this job a checkpoint.storage of its own",
                Reason.SETTINGS_INVALID,
            )
        state.failures += not (state.stopped or state.finished)
    elif other is not None:
        path = _newest(loop, Path(other.path))
        if path is None:
            raise InvalidJob(f"{FIELD}: there is no whole checkpoint in {other.uri}", Reason.SETTINGS_INVALID)
        snapshot = adopt(checkpoint.load(path), fingerprint, loop.total_steps)
    else:
        # Ranks draw the same first weights from the same seed; the broadcast makes sure of it on mixed machines.
        loop.world.broadcast(loop.flat.value_N)
        return
    snapshot.state.world_size, snapshot.state.stopped = loop.world.size, False
    try:
        loop.resume(snapshot)
    except (KeyError, RuntimeError) as error:  # a weight that is missing, or of another shape
        raise InvalidJob(
            f"the checkpoint {path} holds another model or another optimizer ({error}); "
            f"spec.model and spec.training.optimizer have to be those of the job that wrote it",
            Reason.SETTINGS_INVALID,
        ) from None
    loop.reporter.log(f"resumed from step {snapshot.state.step} of {path}")


def adopt(snapshot: Snapshot, fingerprint: Fingerprint, total_steps: int) -> Snapshot:
    """Another job's checkpoint as the beginning of this one: its weights, its moments, and its step.

    The step stays, because Adam's corrections and the schedule go by it; the rows are this job's from there on. What
    was measured over other data is no best to be beaten. Raises InvalidJob where no step would be left.
    """
    state = snapshot.state
    if state.step >= total_steps:
        raise InvalidJob(
            f"{FIELD} is a checkpoint after step {state.step}, but this job ends at step {total_steps}; "
            "set spec.training.epochs or steps higher (they count from the beginning)",
            Reason.SETTINGS_INVALID,
        )
    same = state.fingerprint.data == fingerprint.data and state.fingerprint.batch_size == fingerprint.batch_size
    state = state.model_copy(update={"fingerprint": fingerprint, "finished": False, "failures": 0, "seconds": 0.0})
    if not same:
        state.settled_step, state.best, state.evaluations_without_better = state.step, None, 0
        state.epoch_loss = state.epoch_correct = state.epoch_weight = state.epoch_seconds = 0.0
        state.epoch_steps, state.metrics, state.epochs = 0, {}, []
    return Snapshot(state, snapshot.model, snapshot.optimizer, snapshot.best if same else None)


def _newest(loop: Loop, directory: Path) -> Path | None:
    """The newest whole checkpoint in a directory, or the directory itself where it is one; the same on all ranks."""
    step = -1
    alone = directory.name.startswith(checkpoint.PREFIX) and (directory / checkpoint.STATE).exists()
    if loop.world.first:
        complaints = list[str]()
        if alone:
            try:
                step = checkpoint.verify(directory).step
            except Damaged as error:
                complaints.append(str(error))
        else:
            written, complaints = checkpoint.newest(directory)
            step = written.step if written else -1
        for complaint in complaints:
            loop.reporter.log(f"passed over a damaged checkpoint: {complaint}")
    step = int(loop.world.sum([step if loop.world.first else 0])[0])
    if step < 0:
        return None
    return directory if alone else checkpoint.path_of(directory, step)

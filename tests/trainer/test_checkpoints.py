"""Checkpoints in the background: what is written is what was, whatever changes meanwhile; what follows a failure."""

import errno
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kubeformer.contract.names import ExitCode
from kubeformer_runtime.trainer import checkpoint, saving
from kubeformer_runtime.trainer.errors import StorageLost
from kubeformer_runtime.trainer.saving import Outcome, Saver
from kubeformer_runtime.trainer.state import Fingerprint, State
from kubeformer_runtime.trainer.tensorfile import Block, TensorFile, read
from kubeformer_runtime.trainer.writing import Disk, Live, Room, write
from tests.unit.trainer.builders import checkpoints, job, location, published, same_bits, train

DEADLINE_SECONDS = 60


class Alone:
    """A world of one."""

    rank, size = 0, 1

    def put(self, key: str, text: str) -> None:
        """Nobody reads it."""

    def get(self, key: str) -> str | None:
        """Nobody wrote."""
        return None


class Gate(Disk):
    """A disk that writes nothing until it is let."""

    def __init__(self) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()

    def write(self, descriptor: int, content: memoryview, at: int) -> None:
        self.reached.set()
        assert self.opened.wait(DEADLINE_SECONDS)
        super().write(descriptor, content, at)


class Broken(Disk):
    """A disk that fails with an error number, a number of times."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.times = number, times

    def write(self, descriptor: int, content: memoryview, at: int) -> None:
        if self.times > 0:
            self.times -= 1
            raise OSError(self.number, os.strerror(self.number))
        super().write(descriptor, content, at)


def state(step: int) -> State:
    fingerprint = Fingerprint(data="d", model="m", batch_size=1, seed=0, total_steps=9)
    return State(fingerprint=fingerprint, world_size=1, step=step)


def files(tensors: dict[str, Tensor]) -> list[TensorFile]:
    blocks = tuple(Block(name, tensor) for name, tensor in tensors.items())
    return [
        TensorFile("model.safetensors", blocks),
        TensorFile("optimizer.safetensors", (Block("optimizer.mean.a", tensors["a"]),)),
    ]


def finish(saver: Saver) -> Outcome:
    outcome = saver.wait(lambda: None)
    assert outcome is not None
    return outcome


def test_what_changes_while_it_is_written_is_written_as_it_was(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3_000_000), "b": torch.randn(7, 5), "c": torch.arange(12).bfloat16()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    gate = Gate()
    saver = Saver(tmp_path, 3, Alone(), "t", disk=gate)
    saver.begin(state(5), files(tensors))
    assert gate.reached.wait(DEADLINE_SECONDS)
    assert saver.outcome() is None
    assert saver.before_change() > 0
    for tensor in tensors.values():
        tensor.zero_()
    assert saver.before_change() == 0  # once is enough
    gate.opened.set()
    outcome = finish(saver)
    assert outcome.written == checkpoint.verify(checkpoint.path_of(tmp_path, 5))
    found = checkpoint.load(checkpoint.path_of(tmp_path, 5))
    assert same_bits(found.model, before)
    assert torch.equal(found.optimizer["mean.a"], before["a"])


def test_one_is_in_flight_at_most(tmp_path: Path) -> None:
    gate, tensors = Gate(), {"a": torch.ones(3)}
    saver = Saver(tmp_path, 3, Alone(), "t", disk=gate)
    saver.begin(state(1), files(tensors))
    with pytest.raises(RuntimeError, match="in flight"):
        saver.begin(state(2), files(tensors))
    gate.opened.set()
    assert finish(saver).written is not None
    assert [path.name for path in checkpoint.numbered(tmp_path)] == ["step-00000001"]


def test_a_failure_leaves_the_last_good_one_and_nothing_else_and_the_next_try_may_succeed(tmp_path: Path) -> None:
    saver = Saver(tmp_path, 3, Alone(), "t", disk=Broken(errno.ENOSPC, 2))
    tensors = {"a": torch.ones(3)}
    good = checkpoint.save(tmp_path, checkpoint.Snapshot(state(1), tensors, {"mean.a": tensors["a"]}, None), keep=3)
    for failures in (1, 2):
        saver.begin(state(2), files(tensors))
        outcome = finish(saver)
        assert outcome.error is not None
        assert outcome.error.errno == errno.ENOSPC
        assert saver.failures == failures
        assert os.listdir(tmp_path) == ["step-00000001"]
        assert checkpoint.newest(tmp_path) == (good, [])
    saver.begin(state(2), files(tensors))
    assert finish(saver).written is not None
    assert saver.failures == 0
    assert not saver.given_up


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0.0)


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel refuses to write more than 8 KiB into a file of this process: a real error of a real file system."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("impatient", "small_files")
def test_a_job_without_space_says_so_and_goes_on_from_its_last_checkpoint_when_there_is_some(tmp_path: Path) -> None:
    whole, full = job(tmp_path, name="whole"), job(tmp_path, name="full")
    train(whole)
    train(full, stop_at_step=6)
    (good,) = checkpoints(full)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    code, listener = train(full)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == ExitCode.INVALID
    assert listener.last.failure is not None
    assert listener.last.failure.reason == "StorageFull"
    assert "spec.checkpoint.keep lower (now 3)" in listener.last.failure.message
    assert checkpoints(full) == [good]
    assert train(full)[0] == ExitCode.SUCCEEDED
    assert same_bits(published(full), published(whole))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_lost_storage_is_a_fault_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    settings = job(tmp_path)
    train(settings, stop_at_step=6)
    good = checkpoint.newest(Path(settings.checkpoint.directory))
    broken = Broken(number, 1000)
    monkeypatch.setattr(Disk, "write", broken.write.__func__.__get__(broken))  # type: ignore[attr-defined]
    with pytest.raises(StorageLost, match=f"StorageLost: 3 checkpoints in a row.*{os.strerror(number)}"):
        train(settings)
    assert checkpoint.newest(Path(settings.checkpoint.directory)) == good


class TestResumeFrom:
    def from_(self, directory: Path, path: Path, **changes: object) -> tuple[ExitCode, str, int]:
        settings = job(directory, name="next", **changes)
        where = settings.checkpoint.model_copy(update={"resume_from": location(path)})
        code, listener = train(settings.model_copy(update={"checkpoint": where}))
        steps = [progress.step for progress in listener.heard if progress.step > 0]
        return code, listener.last.failure.message if listener.last.failure else "", steps[0] if steps else 0

    def test_another_jobs_checkpoint_is_gone_on_from_optimiser_and_all(self, tmp_path: Path) -> None:
        first, whole = job(tmp_path, name="first"), job(tmp_path, name="whole")
        train(whole)
        train(first, stop_at_step=8)
        code, _, step = self.from_(tmp_path, Path(first.checkpoint.directory))
        assert code == ExitCode.SUCCEEDED
        assert step in (8, 9)
        # Same data, seed and settings: the same bits as if one job had done it all.
        assert same_bits(published(job(tmp_path, name="next")), published(whole))

    def test_one_that_does_not_fit_is_refused_in_words(self, tmp_path: Path) -> None:
        first = job(tmp_path, name="first")
        train(first, stop_at_step=8)
        (path,) = checkpoints(first)
        assert "holds another model" in self.from_(tmp_path, path, width=32)[1]
        assert "set spec.training.epochs or steps higher" in self.from_(tmp_path, path, epochs=1)[1]
        (path / "state.json").write_text("{}")
        assert "there is no whole checkpoint" in self.from_(tmp_path, path.parent)[1]


class TestTheFormatIsThatOfPyTorchDCP:
    def test_dcp_loads_what_several_ranks_of_ours_wrote(self, tmp_path: Path) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import HuggingFaceStorageReader

        whole, plain = torch.randn(7, 6), torch.randn(5)
        cuts = [Block("w", whole[:4].contiguous(), (0, 0)), Block("w", whole[4:].contiguous(), (4, 0))]
        for rank, block in enumerate(cuts):
            blocks = (block, *([Block("p", plain)] if rank == 0 else []))
            live = Live([held.tensor for held in blocks], [False] * len(blocks), Room())
            write(tmp_path, [TensorFile(checkpoint.file_name("model", rank, 2), blocks)], live, Disk())
        found = {"w": torch.zeros(7, 6), "p": torch.zeros(5)}
        dcp.load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
        assert same_bits(found, {"w": whole, "p": plain})
        assert same_bits(read(sorted(tmp_path.iterdir())), found)

    def test_ours_reads_what_dcp_wrote(self, tmp_path: Path) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import HuggingFaceStorageWriter

        tensors = {"w": torch.randn(7, 6), "p": torch.randn(5).bfloat16()}
        writer = HuggingFaceStorageWriter(str(tmp_path), save_distributed=True)
        dcp.save(tensors, storage_writer=writer, no_dist=True)
        assert same_bits(read(tmp_path.glob("*.safetensors")), tensors)

    def test_parts_with_a_hole_between_them_are_no_tensor(self, tmp_path: Path) -> None:
        blocks = (Block("w", torch.ones(2, 3), (2, 0)),)
        write(tmp_path, [TensorFile("model.safetensors", blocks)], Live([blocks[0].tensor], [False], Room()), Disk())
        with pytest.raises(ValueError, match="do not make up a tensor"):
            read(tmp_path.iterdir())


class Board:
    """Notes of two ranks in one process."""

    size = 2

    def __init__(self, rank: int, notes: dict[str, str]) -> None:
        self.rank, self.notes = rank, notes

    def put(self, key: str, text: str) -> None:
        """For the other rank."""
        self.notes[key] = text

    def get(self, key: str) -> str | None:
        """From the other rank."""
        return self.notes.get(key)


class TestRanksThatHoldParts:
    def savers(self, directory: Path, second: Disk) -> list[Saver]:
        notes: dict[str, str] = {}
        return [Saver(directory, 3, Board(rank, notes), "t", parts=True, disk=(None, second)[rank]) for rank in (0, 1)]

    def begin(self, savers: list[Saver], whole: Tensor) -> None:
        for rank, saver in enumerate(savers):
            half = whole[2 * rank : 2 * rank + 2].clone()
            kinds = (("model", "w"), ("optimizer", "optimizer.mean.w"))
            saver.begin(
                state(3),
                [
                    TensorFile(checkpoint.file_name(kind, rank, 2), (Block(n, half, (2 * rank, 0)),))
                    for kind, n in kinds
                ],
            )

    def test_what_each_wrote_becomes_one_checkpoint_of_whole_tensors(self, tmp_path: Path) -> None:
        savers, whole = self.savers(tmp_path, Disk()), torch.randn(4, 3)
        self.begin(savers, whole)
        assert [finish(saver).written is not None for saver in savers] == [True, False]
        found, complaints = checkpoint.newest(tmp_path)
        assert found is not None
        assert not complaints
        assert torch.equal(checkpoint.load(found.path).model["w"], whole)
        (found.path / "model-00002-of-00002.safetensors").unlink()
        assert checkpoint.newest(tmp_path)[0] is None

    def test_where_one_fails_there_is_none_and_rank_0_knows_why(self, tmp_path: Path) -> None:
        savers = self.savers(tmp_path, Broken(errno.EIO, 1))
        self.begin(savers, torch.randn(4, 3))
        first, second = (finish(saver) for saver in savers)
        assert second.error is not None
        assert first.error is not None
        assert "rank 1" in str(first.error)
        assert os.listdir(tmp_path) == []


def test_a_strategy_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    settings = job(tmp_path)
    workers = settings.workers.model_copy(update={"strategy": "FSDP"})
    code, listener = train(settings.model_copy(update={"workers": workers}))
    assert code == ExitCode.INVALID
    assert listener.last.failure is not None
    assert "spec.workers.strategy is FSDP" in listener.last.failure.message

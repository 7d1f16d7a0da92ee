"""1,000 damaged checkpoints: none may be loaded, the one before has to be, and it has to be said.

A small model's checkpoints of two steps lie in a directory. For each trial the newer one is hurt in one of eleven ways,
at a place drawn by lot: cut off, emptied, a bit flipped, a block zeroed as by a lost page, longer than it was, a file
gone, a file of another step or another job in its place, a file beside it that was not there, two digests exchanged, a
copy torn between two states. Then the trainer's own search looks for the newest whole one.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from bench.trainer.bars import Bar, Bench, table
from kubeformer_runtime.trainer import checkpoint
from kubeformer_runtime.trainer.checkpoint import Snapshot
from kubeformer_runtime.trainer.state import Best, Fingerprint, State

TRIALS = 1000
SEED = 5


def run(bench: Bench) -> list[Bar]:
    """All trials."""
    lots, sound, hurt = random.Random(SEED), bench.work / "sound", bench.work / "hurt"
    shutil.rmtree(sound, ignore_errors=True)
    for step in (10, 20):
        checkpoint.save(sound, _snapshot(step, "job"), keep=3)
    other = checkpoint.save(bench.work / "other", _snapshot(20, "another job"), keep=1).path
    older = checkpoint.load(checkpoint.path_of(sound, 10))
    loaded, unsaid, lost, kinds = 0, 0, 0, Counter[str]()
    for _ in range(TRIALS):
        shutil.rmtree(hurt, ignore_errors=True)
        shutil.copytree(sound, hurt)
        target = checkpoint.path_of(hurt, 20)
        kind = lots.choice(sorted(DAMAGES))
        before = _content(target)
        while _content(target) == before:  # a lot may fall on bytes that are zero already
            DAMAGES[kind](target, other, lots)
        kinds[kind] += 1
        found, complaints = checkpoint.newest(hurt)
        loaded += found is not None and found.step == 20
        unsaid += not any("step-00000020" in complaint for complaint in complaints)
        lost += found is None or found.step != 10 or not _same(checkpoint.load(found.path), older)
    lines = [(kind, count) for kind, count in sorted(kinds.items())]
    print(table(f"{TRIALS} damaged checkpoints, seed {SEED}", ("damage", "times"), lines))
    print(f"loaded all the same: {loaded}; not spoken of: {unsaid}; the one before not taken: {lost}")
    bench.figures.update({"kinds": dict(kinds), "loaded": loaded, "unsaid": unsaid, "lost": lost})
    why = f"{TRIALS} injected, {len(kinds)} kinds, seed {SEED}; fallen back and said {TRIALS - max(unsaid, lost)} times"
    return [Bar("damaged checkpoints loaded, silent or without fallback", 0, 0, loaded + unsaid + lost, False, why)]


def _snapshot(step: int, job: str) -> Snapshot:
    generator = torch.Generator().manual_seed(step + len(job))

    def tensors() -> dict[str, torch.Tensor]:
        return {f"layer.{n}.weight": torch.randn(64, 64, generator=generator) for n in range(4)}

    fingerprint = Fingerprint(data=job, model="m", batch_size=1, seed=0, total_steps=100)
    best = Best(step=step - 5, value=0.5, metrics={"validation/loss": 0.5})
    moments = {f"{moment}.{name}": t for moment in ("mean", "square") for name, t in tensors().items()}
    return Snapshot(State(fingerprint=fingerprint, world_size=1, step=step, best=best), tensors(), moments, tensors())


def _content(target: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in target.iterdir()}


def _same(one: Snapshot, other: Snapshot) -> bool:
    return one.state == other.state and all(
        torch.equal(tensor, other.model[name]) for name, tensor in one.model.items()
    )


def _file(target: Path, lots: random.Random) -> Path:
    return lots.choice(sorted(target.iterdir()))


def _cut_off(target: Path, other: Path, lots: random.Random) -> None:
    path = _file(target, lots)
    content = path.read_bytes()
    path.write_bytes(content[: lots.randrange(len(content))])


def _emptied(target: Path, other: Path, lots: random.Random) -> None:
    _file(target, lots).write_bytes(b"")


def _bit(target: Path, other: Path, lots: random.Random) -> None:
    path = _file(target, lots)
    content = bytearray(path.read_bytes())
    content[lots.randrange(len(content))] ^= 1 << lots.randrange(8)
    path.write_bytes(content)


def _zeroed(target: Path, other: Path, lots: random.Random) -> None:
    path = _file(target, lots)
    content = bytearray(path.read_bytes())
    start = lots.randrange(len(content)) // 512 * 512
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)


def _longer(target: Path, other: Path, lots: random.Random) -> None:
    path = _file(target, lots)
    path.write_bytes(path.read_bytes() + lots.randbytes(lots.randint(1, 4096)))


def _gone(target: Path, other: Path, lots: random.Random) -> None:
    _file(target, lots).unlink()


def _of_another_step(target: Path, other: Path, lots: random.Random) -> None:
    path = _file(target, lots)
    path.write_bytes((checkpoint.path_of(target.parent, 10) / path.name).read_bytes())


def _of_another_job(target: Path, other: Path, lots: random.Random) -> None:
    path = _file(target, lots)
    path.write_bytes((other / path.name).read_bytes())


def _beside(target: Path, other: Path, lots: random.Random) -> None:
    source = lots.choice(sorted(other.glob("*.safetensors")))
    target.joinpath(f"{source.stem}-{lots.randrange(9):05d}-of-00009.safetensors").write_bytes(source.read_bytes())


def _exchanged(target: Path, other: Path, lots: random.Random) -> None:
    digests = target / "digests.json"
    told = json.loads(digests.read_text())
    one, two = lots.sample(sorted(told), 2)
    told[one], told[two] = told[two], told[one]
    digests.write_text(json.dumps(told))


def _torn(target: Path, other: Path, lots: random.Random) -> None:
    """Some files of an older state among those of a newer one, as a copy that was interrupted leaves them."""
    names = sorted(path.name for path in target.iterdir())
    for name in names[: lots.randint(1, len(names) - 1)]:
        (target / name).write_bytes((checkpoint.path_of(target.parent, 10) / name).read_bytes())


DAMAGES: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "cut off": _cut_off,
    "emptied": _emptied,
    "bit flipped": _bit,
    "block zeroed": _zeroed,
    "longer": _longer,
    "file gone": _gone,
    "file of another step": _of_another_step,
    "file of another job": _of_another_job,
    "file beside": _beside,
    "digests exchanged": _exchanged,
    "torn copy": _torn,
}

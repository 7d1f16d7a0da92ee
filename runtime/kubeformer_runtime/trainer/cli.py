"""kubeformer-train: a TrainingJob on this machine, without Kubernetes, by the code that runs in a cluster.

    kubeformer-train job.yaml                                    a TrainingJob as it would be applied
    kubeformer-train settings.json                               settings as the operator writes them
    kubeformer-train mails.jsonl --task textClassification --epochs 10 --batch-size 32 --output models/spam

pvc://CLAIM/PATH is PATH in the folder CLAIM, or in the one that --volume CLAIM=FOLDER names. Ctrl-C saves a
checkpoint; the same command goes on from it. At the end curves lie beside the model (curves.html, curves.png).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kubeformer.contract import names
from kubeformer.contract.job import Custom, JobSettings
from kubeformer.contract.names import ExitCode
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.trainer.bar import Bar, Listener, above
from kubeformer_runtime.trainer.base import fetch_base
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.plots import History
from kubeformer_runtime.trainer.stop import StopWish
from kubeformer_runtime.trainer.tracking import tracked

TASKS = ("textClassification", "languageModel", "chat", "preference", "textToText", "recommendation")
_FLAGS = {  # flags that stand for a field of the spec
    "epochs": "training.epochs",
    "steps": "training.steps",
    "batch_size": "training.batchSize",
    "learning_rate": "training.learningRate",
    "optimizer": "training.optimizer.type",
    "precision": "training.precision",
    "seed": "training.seed",
    "layers": "model.architecture.layers",
    "width": "model.architecture.width",
    "heads": "model.architecture.heads",
}
_FILES = {"base": "model.uri", "validation": "data.validation.uri", "test": "data.test.uri"}


class UsageError(Exception):
    """What was asked for makes no sense; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains; the exit code is that of a worker (contract/names.py)."""
    given = _parser().parse_args(arguments)
    try:
        settings = _settings(given)
    except UsageError as error:
        print(f"kubeformer-train: {error}", file=sys.stderr)
        return 2
    if isinstance(settings.task, Custom):
        return _launch(settings)
    return _train(settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kubeformer-train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a TrainingJob (.yaml), settings (.json), or rows")
    parser.add_argument("--output", type=Path, help="folder that becomes the model")
    parser.add_argument(
        "--volume", action="append", default=[], metavar="CLAIM=FOLDER", help="where pvc://CLAIM/ is on this machine"
    )
    parser.add_argument("--task", choices=TASKS, help="what to learn, where the file holds rows")
    for name in (*_FLAGS, *_FILES):
        parser.add_argument("--" + name.replace("_", "-"), help=f"spec.{(_FLAGS | _FILES)[name]}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any field below spec, such as data.format=CSV",
    )
    return parser


def _settings(given: argparse.Namespace) -> JobSettings:
    """Settings with the paths of this machine. Raises UsageError."""
    volumes = dict(part.split("=", 1) for part in given.volume if "=" in part)
    if not given.file.exists():
        raise UsageError(f"there is no file {given.file}")
    maps: dict[str, dict[str, str]] = {}
    if given.file.suffix == ".json":
        document = json.loads(given.file.read_text("utf-8"))
    else:
        if given.file.suffix in (".yaml", ".yml"):
            text = given.file.read_text("utf-8")
        else:
            text = json.dumps(_job(given, volumes))
        found = _translated(text)
        document, maps = found["settings"], found["configMaps"]
    document = _local(document, volumes, _written(maps))
    if given.output is not None:
        output = given.output.absolute()
        document["output"]["location"] = {"uri": output.as_uri(), "path": str(output)}
        document["checkpoint"]["directory"] = f"{output}.checkpoints"
    try:
        return JobSettings.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{given.file} holds no settings: {error}") from None


def _job(given: argparse.Namespace, volumes: dict[str, str]) -> dict[str, Any]:
    """A TrainingJob from rows and flags; files become paths on made-up claims."""
    if given.task is None:
        raise UsageError(f"{given.file} holds rows: say what to learn, such as --task textClassification")
    spec: dict[str, Any] = {"task": {given.task: {}}}
    _set(spec, "data.uri", _uri(given.file, volumes))
    for flag, field in _FLAGS.items():
        if (value := getattr(given, flag)) is not None:
            _set(spec, field, _value(value))
    for flag, field in _FILES.items():
        if (value := getattr(given, flag)) is not None:
            _set(spec, field, value if "://" in value else _uri(Path(value), volumes))
    for part in given.set:
        field, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--set {part}: write FIELD=VALUE")
        _set(spec, field, _value(value))
    name = (given.output or given.file).stem.lower().replace("_", "-").replace(".", "-")
    metadata = {"name": name[:48] if name[:1].isalpha() else "job"}
    return {"apiVersion": names.API_VERSION, "kind": "TrainingJob", "metadata": metadata, "spec": spec}


def _uri(path: Path, volumes: dict[str, str]) -> str:
    folder = str(path.absolute().parent)
    claim = next((name for name, known in volumes.items() if known == folder), f"folder-{len(volumes)}")
    volumes[claim] = folder
    return f"pvc://{claim}/{path.name}"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _set(spec: dict[str, Any], field: str, value: Any) -> None:
    *steps, last = field.split(".")
    place: Any = spec
    for step in steps:
        place = place.setdefault(step, {})
        if not isinstance(place, dict):
            raise UsageError(f"{field}: {step} is no object")
    place[last] = value


def _translated(text: str) -> dict[str, Any]:
    """What the operator would tell the workers, asked of its own code in a process of its own: trainer and control
    plane know nothing of each other but the contract.
    """
    command = [sys.executable, "-m", "kubeformer.training.local"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UsageError(done.stderr.strip() or f"the job cannot be read (exit code {done.returncode})")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _written(maps: Mapping[str, Mapping[str, str]]) -> Path:
    """A folder with the ConfigMaps that came along."""
    folder = Path(tempfile.mkdtemp(prefix="kubeformer-configmaps-")) if maps else Path()
    for name, data in maps.items():
        (folder / name).mkdir()
        for key, text in data.items():
            (folder / name / key).write_text(text, "utf-8")
    return folder


def _local(value: Any, volumes: Mapping[str, str], maps: Path) -> Any:
    """The document with the pod's paths turned into this machine's."""
    if isinstance(value, dict):
        return {key: _local(item, volumes, maps) for key, item in value.items()}
    if isinstance(value, list):
        return [_local(item, volumes, maps) for item in value]
    if not isinstance(value, str):
        return value
    for prefix, folder in (
        (f"{names.CONFIG_MAPS_DIRECTORY}/", maps),
        (f"{names.SCRATCH_DIRECTORY}/downloads/", Path.home() / ".cache" / "kubeformer" / "downloads"),
    ):
        if value.startswith(prefix):
            return str((folder / value[len(prefix) :]).absolute())
    if value.startswith(prefix := f"{names.CLAIMS_DIRECTORY}/"):
        claim, _, rest = value[len(prefix) :].partition("/")
        return str(Path(volumes.get(claim, claim), rest).absolute())
    return value


def _train(settings: JobSettings) -> int:
    """Runs the trainer in this process, with a bar on standard error."""
    stop, history = StopWish(), History()
    bar = Bar(sys.stderr)
    listener = Listener(bar, history)
    stop.listen()

    def interrupted(*_: object) -> None:
        stop.wished = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        bar.say("stopping after a checkpoint; Ctrl-C again ends at once")

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        from kubeformer_runtime.trainer.report import Clock
        from kubeformer_runtime.trainer.run import run

        with above(bar):
            fetch_base(settings, lambda: None, 0)
            code = run(settings, {}, tracked(settings, listener, 0), stop, Clock())
    except (InvalidJob, DataError) as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return int(ExitCode.INVALID)
    finally:
        bar.close()
        signal.signal(signal.SIGINT, before)
    if code == ExitCode.STOPPED:
        print(f"stopped, with a checkpoint in {settings.checkpoint.directory}: the same command goes on from there")
    if code == ExitCode.SUCCEEDED:
        _show(settings, listener, history)
    return int(code)


def _show(settings: JobSettings, listener: Listener, history: History) -> None:
    from kubeformer_runtime.trainer.plots import write_curves

    output, said = Path(settings.output.location.path), listener.progress
    facts: dict[str, object] = {"model": str(output), "task": settings.task.kind}
    if said is not None:
        facts |= {"steps": said.step, **said.resolved, **{k: f"{v:.4g}" for k, v in said.metrics.items()}}
    if history.values:
        print("curves: " + " ".join(map(str, write_curves(settings.name, history, output, facts))))
    print(f"model: {output}\nkubeformer-serve --model {output}   serves it")


def _launch(settings: JobSettings) -> int:
    """A custom task runs under the launcher, as in a pod."""
    folder = Path(tempfile.mkdtemp(prefix="kubeformer-"))
    path = folder / "settings.json"
    path.write_text(settings.model_dump_json(), "utf-8")
    environment = os.environ | {names.ENV_SETTINGS: str(path), names.ENV_SOCKET: str(folder / "launcher.sock")}
    options = ["--listen", "127.0.0.1:0", "--termination-log", str(folder / "termination-log")]
    command = [sys.executable, "-m", "kubeformer_runtime.launcher", *options]
    process = subprocess.Popen(command, env=environment)
    before = signal.signal(signal.SIGINT, lambda *_: None)  # the launcher hears Ctrl-C itself
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())

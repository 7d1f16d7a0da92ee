"""The check ahead of an engine that takes whatever model it finds: it is the one asked for, or it says why not."""

import json
from pathlib import Path

import pytest

from kubeformer.contract.base import Location
from kubeformer.contract.names import ExitCode
from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.model.check import main
from kubeformer_runtime.model.digest import digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with a file of a model in it."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def checked(directory: Path, wanted: str | None) -> tuple[int, dict[str, str]]:
    """The exit code and the termination message."""
    settings = ServerSettings(
        name="spam",
        namespace="lab",
        model=Location(uri="pvc://models/spam", path=str(directory), digest=wanted),
        served_names=["spam"],
    )
    file, message = directory.parent / "settings.json", directory.parent / "message"
    file.write_text(settings.model_dump_json())
    code = main({"KUBEFORMER_SETTINGS": str(file), "KUBEFORMER_TERMINATION_MESSAGE_PATH": str(message)})
    return code, json.loads(message.read_text()) if message.exists() else {}


def test_the_model_that_was_asked_for_passes(model: Path) -> None:
    assert checked(model, digest(model)) == (ExitCode.SUCCEEDED, {})
    assert checked(model, None) == (ExitCode.SUCCEEDED, {})


def test_another_model_does_not(model: Path) -> None:
    wanted = digest(model)
    (model / "config.json").write_text('{"changed": true}')
    code, said = checked(model, wanted)
    assert (code, said["reason"]) == (ExitCode.INVALID, "ModelInvalid")
    assert wanted in said["message"]
    assert digest(model) in said["message"]


def test_a_directory_that_is_not_there_is_told_apart(model: Path) -> None:
    code, said = checked(model.parent / "nowhere", "sha256:0")
    assert (code, said["reason"]) == (ExitCode.INVALID, "ModelNotFound")


def test_settings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    message = tmp_path / "message"
    environment = {"KUBEFORMER_SETTINGS": str(tmp_path / "none"), "KUBEFORMER_TERMINATION_MESSAGE_PATH": str(message)}
    assert main(environment) == ExitCode.INVALID
    assert json.loads(message.read_text())["reason"] == "SettingsInvalid"

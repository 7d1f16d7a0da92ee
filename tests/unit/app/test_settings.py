"""The settings file is read strictly, and every setting that planners know can be set in it."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kubeformer.app.settings import ENV_OPERATOR_SETTINGS, Settings, SettingsError, load
from kubeformer.kit.settings import OperatorSettings

SMALLEST = {"workerImage": "registry/worker:1", "serverImage": "registry/server:1"}
EVERYTHING: dict[str, Any] = {
    "workerImage": "w",
    "serverImage": "s",
    "vllmImage": "v",
    "imagePullPolicy": "Always",
    "imagePullSecrets": ["regcred"],
    "storage": {"uri": "pvc://models/team", "storageClassName": "nfs", "size": "1Ti"},
    "gatewayUrl": "https://models.example.com",
    "gangs": True,
    "workerDefaults": {"resources": {"requests": {"cpu": "2"}}},
    "serverDefaults": {"resources": {"requests": {"memory": "2Gi"}}},
    "cleanup": {"tries": 5, "seconds": 60},
}


def read(tmp_path: Path, content: Any) -> Settings:
    path = tmp_path / "settings.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load({ENV_OPERATOR_SETTINGS: str(path)})


def test_two_images_are_enough(tmp_path: Path) -> None:
    settings = read(tmp_path, SMALLEST)
    assert settings.for_planners().storage_uri == "pvc://kubeformer"
    assert settings.health_port == 8081


def test_every_setting_that_planners_read_can_be_set(tmp_path: Path) -> None:
    default = read(tmp_path, SMALLEST).for_planners()
    chosen = read(tmp_path, EVERYTHING).for_planners()
    untouched = [f.name for f in fields(OperatorSettings) if getattr(default, f.name) == getattr(chosen, f.name)]
    assert untouched == []


def test_the_defaults_of_the_file_are_those_of_the_planners(tmp_path: Path) -> None:
    read_in = read(tmp_path, SMALLEST).for_planners()
    plain = OperatorSettings(worker_image="registry/worker:1", server_image="registry/server:1")
    ours = {"worker_requests", "server_requests"}  # the planners' None stands for the same numbers
    differ = [f.name for f in fields(OperatorSettings) if getattr(read_in, f.name) != getattr(plain, f.name)]
    assert set(differ) <= ours


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**SMALLEST, "workerImages": "x"}, "workerImages: Extra inputs are not permitted"),
        ({"workerImage": "w"}, "serverImage: Field required"),
        ({**SMALLEST, "pollSeconds": -1}, "pollSeconds: Input should be greater than or equal to 0.1"),
        ({**SMALLEST, "storage": {"uri": "s3://bucket"}}, "storage.uri: String should match pattern"),
        ({**SMALLEST, "leaderElection": {"leaseSeconds": 10}}, "renewDeadlineSeconds (10) must be below"),
        ("{", "is not JSON"),
    ],
)
def test_what_is_wrong_is_said_with_the_name_of_the_field(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read(tmp_path, content)
    assert said in str(raised.value)


def test_a_missing_variable_or_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{ENV_OPERATOR_SETTINGS} must name"):
        load({})
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load({ENV_OPERATOR_SETTINGS: str(tmp_path / "absent.json")})

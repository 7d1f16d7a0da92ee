"""Which kind of cluster is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcluster.engine import choose_engine, container_engine, engine_answers
from localcluster.errors import ClusterError


def test_without_a_container_engine_the_cluster_is_local() -> None:
    assert choose_engine({}, answers=lambda program: False) == "local"


def test_a_container_engine_that_answers_means_kind() -> None:
    assert choose_engine({}, answers=lambda program: program == "podman") == "kind"
    assert container_engine(lambda program: True) == "docker"


def test_the_variable_decides_before_any_engine_is_asked() -> None:
    def unasked(program: str) -> bool:
        raise AssertionError("no engine should be asked")

    assert [choose_engine({"CLUSTER": name}, unasked) for name in ("local", "kind", "current")] == [
        "local",
        "kind",
        "current",
    ]


def test_an_unknown_cluster_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ClusterError, match=r"'minikube'.*local, kind, current"):
        choose_engine({"CLUSTER": "minikube"})


def _client(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = folder / "docker"
    client.write_text(f"#!/bin/sh\n{script}\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_client_whose_daemon_does_not_answer_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _client(tmp_path, "echo 'Cannot connect to the daemon' >&2; exit 1", monkeypatch)
    assert not engine_answers("docker")


def test_a_client_that_succeeds_without_naming_its_daemon_is_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _client(tmp_path, "echo; exit 0", monkeypatch)
    assert not engine_answers("docker")


def test_a_client_whose_daemon_answers_is_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _client(tmp_path, "echo 5f0c1d; exit 0", monkeypatch)
    assert engine_answers("docker")

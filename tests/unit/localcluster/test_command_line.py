"""The command line: errors are one sentence, and the standard library is enough."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from localcluster import verbs
from localcluster.__main__ import main
from localcluster.components import REPOSITORY

LOCAL = {"CLUSTER": "local"}


def test_an_error_is_one_line_and_a_failing_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kubeconfig"], {**LOCAL, "KUBEFORMER_CACHE": str(tmp_path)[:40]}) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("localcluster: There is no kubeconfig at ")
    assert line.endswith("run `python -m localcluster up`.")


def test_an_unknown_component_is_refused_with_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "component_names", lambda cluster: ["etcd", "kube-apiserver"])
    assert main(["kill", "etcdd"], {**LOCAL, "KUBEFORMER_CACHE": str(tmp_path)[:40]}) == 1
    assert "no component 'etcdd'; components are etcd, kube-apiserver" in capsys.readouterr().err


def test_an_unknown_part_is_refused_with_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["binaries", "etdc"], {**LOCAL, "KUBEFORMER_CACHE": str(tmp_path)[:40]}) == 1
    assert "no part 'etdc'; parts are kubernetes, etcd" in capsys.readouterr().err


def test_somebody_elses_cluster_is_not_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down"], {"CLUSTER": "current"}) == 1
    assert "does not end it" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((REPOSITORY / "localcluster").rglob("*.py")), ids=lambda path: path.name)
def test_the_standard_library_is_enough(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            root = module.partition(".")[0]
            assert root == "localcluster" or root in sys.stdlib_module_names, f"{path.name} imports {module}"

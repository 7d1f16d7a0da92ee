"""What must stay true of the tree as a whole."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "operator/requirements.lock", "runtime/requirements.lock")


@pytest.mark.parametrize("folder", ["operator", "runtime"])
def test_the_two_folders_are_no_packages_or_operator_would_shadow_the_standard_library(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_hold_hashes_and_no_addresses(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert "--hash=sha256:" in text


def imports(module: str) -> set[str]:
    """The top-level modules that `import module` brings in, in a fresh interpreter."""
    script = f"import sys, {module}; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    )


def test_the_operator_starts_without_torch() -> None:
    assert not {"torch", "numpy", "transformers"} & imports("kubeformer.app.main")


def test_the_gateway_starts_without_kopf_or_torch() -> None:
    assert not {"torch", "numpy", "kopf"} & imports("kubeformer.gateway.main")


def test_the_server_starts_without_kopf_or_the_kubernetes_client() -> None:
    assert not {"kopf", "kubernetes"} & imports("kubeformer_runtime.server")


def test_the_launcher_needs_the_standard_library_alone() -> None:
    outside = imports("kubeformer_runtime.launcher") - set(sys.stdlib_module_names) - {"kubeformer_runtime", "__main__"}
    assert {name for name in outside if not name.startswith("_")} == set()


def test_nothing_in_the_tree_names_a_package_index_or_a_home_directory() -> None:
    forbidden = ["files.pythonhosted" + ".org", "proxy.golang" + ".org", "registry.npmjs" + ".org", "/root" + "/.pyenv"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    found = []
    for name in filter(None, tracked):
        text = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        found += [f"{name}: {word}" for word in forbidden if word.encode() in text]
    assert found == []

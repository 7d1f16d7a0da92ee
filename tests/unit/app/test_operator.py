"""What the process watches, and that it does not start on settings it cannot use."""

import subprocess
import sys
from pathlib import Path

from kubeformer.app.doorbell import engine_settings
from kubeformer.app.operator import CHILDREN, selectors
from kubeformer.cluster.resources import RESOURCES
from kubeformer.kit.child import UNLABELLED


def test_children_are_watched_by_our_label_but_for_those_that_users_make() -> None:
    labelled = {kind for kind in CHILDREN if "labelSelector" in selectors(kind)}
    assert labelled == {"Job", "Pod", "Service", "Deployment", "PodDisruptionBudget"}
    assert set(CHILDREN) - labelled == set(UNLABELLED)
    assert set(CHILDREN) <= set(RESOURCES)


def test_kopf_posts_nothing_scans_nothing_and_never_kills_the_process() -> None:
    settings = engine_settings()
    assert not settings.posting.enabled
    assert settings.scanning.disabled
    assert settings.process.ultimate_exiting_timeout is None


def test_the_process_says_which_setting_is_wrong_and_ends_with_two(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"workerImage": "w"}')
    program = "import sys; from kubeformer.app.main import main; sys.exit(main(lambda settings: {}))"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"KUBEFORMER_OPERATOR_SETTINGS": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2
    assert "serverImage: Field required" in ended.stderr
    assert "Traceback" not in ended.stderr

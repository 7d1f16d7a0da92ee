"""Planners: which planner works for which of our kinds, under which field manager."""

from kubeformer import serving, training
from kubeformer.control.worker import Controller
from kubeformer.kit.settings import OperatorSettings


def controllers(settings: OperatorSettings) -> dict[str, Controller]:
    """One controller for each kind, by kind."""
    return {
        "TrainingJob": Controller(
            kind="TrainingJob",
            manager="trainingjob-controller",
            reconcile=lambda view, key, now: training.reconcile(view, key, settings, now),
            refusal=(("Valid", "False"), ("Succeeded", "Unknown")),
        ),
        "ModelDeployment": Controller(
            kind="ModelDeployment",
            manager="modeldeployment-controller",
            reconcile=lambda view, key, now: serving.reconcile(view, key, settings, now),
            refusal=(("Valid", "False"), ("Ready", "False")),
        ),
    }

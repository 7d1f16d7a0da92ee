"""What a TrainingJob needs next. Pure: `reconcile(view, key, settings, now)` looks, decides, and says a Plan.

`observe` gathers, `checks` decides whether the job may start, `resolve` chooses what the spec leaves open, `document`
writes what the workers are told, `secrets` which variables come from where, `build`
renders the children, `outlook` and `status` say how it is doing, `removal` cleans up, and `plan` puts them together.
"""

from kubeformer.training.plan import reconcile

__all__ = ["reconcile"]

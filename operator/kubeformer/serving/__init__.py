"""What a ModelDeployment needs next. Pure: `reconcile(view, key, settings, now)` looks, decides, and says a Plan.

`observe` gathers, `checks` decides whether something may be rolled out, `build` renders the children, `status` says
how it is doing, and `plan` puts them together.
"""

from kubeformer.serving.plan import reconcile

__all__ = ["reconcile"]

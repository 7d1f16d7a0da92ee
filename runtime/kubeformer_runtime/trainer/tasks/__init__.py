"""What is learned: a task turns prepared rows into batches, a batch into sums, and sums into metrics.

The loop knows no task by name. It asks a task for the passes of a step (every rank gets equally many), divides each
loss by the weight of the whole global batch, and adds the gradients up: so the gradient is that of the mean over the
batch, whichever rank saw which row, also where the last batch is smaller.

To add a kind of task, first write its data recipe (see `data/recipes/__init__.py`), then `trainer/tasks/NAME.py`,
the module of the same name, with two functions:

    make_task(settings, prepared) -> Task          # subclass `base.BaseTask`, which has what most tasks share
    make_network(settings, prepared) -> Network    # from scratch or from a base; networks.py has what tasks share

and enter the name in `data.recipes.MODULES`. A module is imported only for a job of its kind. Metrics that need more
than sums over batches (generated texts, ranks of items) are made by `Task.extra`, on every rank's share of the rows.
"""

from importlib import import_module
from typing import Protocol, cast

from kubeformer.contract.job import JobSettings
from kubeformer_runtime.data.prepared import Prepared, Split
from kubeformer_runtime.data.recipes import MODULES
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.tasks.base import (
    BaseTask,
    Network,
    Ranks,
    Tally,
    Task,
    Totals,
    evaluation_shares,
    passes,
)


class TaskModule(Protocol):
    """What a module of this package offers."""

    def make_task(self, settings: JobSettings, prepared: Prepared) -> Task:
        """The task over prepared data."""
        ...

    def make_network(self, settings: JobSettings, prepared: Prepared) -> Network:
        """The network before the first step, in float32 on the CPU. The random generator is seeded already."""
        ...


def module_for(settings: JobSettings) -> TaskModule:
    """The module of a job's kind of task. Raises InvalidJob where there is none."""
    kind = settings.task.kind
    if kind not in MODULES:
        raise InvalidJob(f"spec.task: {kind} is not trained here; known: {', '.join(MODULES)}")
    return cast(TaskModule, import_module(f"{__name__}.{MODULES[kind]}"))


def make_task(settings: JobSettings, prepared: Prepared) -> Task:
    """The task that fits what was prepared."""
    return module_for(settings).make_task(settings, prepared)


__all__ = [
    "BaseTask",
    "Network",
    "Ranks",
    "Split",
    "Tally",
    "Task",
    "TaskModule",
    "Totals",
    "evaluation_shares",
    "make_task",
    "module_for",
    "passes",
]

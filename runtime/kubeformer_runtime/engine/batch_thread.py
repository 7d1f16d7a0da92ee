"""BatchThread: the thread, inbox and way back to the event loop of an engine that answers whole jobs in batches.

An engine says in `_work` how it goes through its inbox; each job put there carries a future of the event loop.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from kubeformer_runtime.engine.async_engine import EngineDeadError

logger = logging.getLogger(__name__)


class Job(Protocol):
    """Something on its way."""

    @property
    def future(self) -> "asyncio.Future[Any]":
        """Where its answer goes."""
        ...


JobT = TypeVar("JobT", bound=Job)


class BatchThread(ABC, Generic[JobT]):
    """Start it inside a running event loop; `close` ends the thread."""

    def __init__(self, name: str) -> None:
        self._inbox: queue.SimpleQueue[list[JobT] | None] = queue.SimpleQueue()  # None: finish what waits, then end
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._death: BaseException | None = None
        self._unanswered: list[JobT] = []  # taken from the inbox and not answered yet

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return self._death is None and self._thread.is_alive()

    def start(self) -> None:
        """Begin to work."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Finish what waits and stop the thread."""
        if self._thread.is_alive():
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)

    def _listener(self) -> asyncio.AbstractEventLoop:
        """The loop that hears of answers. Raises EngineDeadError where there will be none."""
        if not self.alive or self._loop is None:
            raise EngineDeadError("the engine has stopped")
        return self._loop

    @abstractmethod
    def _work(self) -> None:
        """Answers what comes, in the thread, until it is closed; keeps `_unanswered`."""

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            logger.exception("the engine broke; the process has to be started again")
            self._death = error
        else:
            self._death = EngineDeadError("the engine was closed")
        rest = list(self._unanswered)
        with contextlib.suppress(queue.Empty):
            while True:
                rest.extend(self._inbox.get_nowait() or [])
        self._call(partial(_fail, rest))

    def _call(self, action: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(action)


def _fail(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(EngineDeadError("the engine has stopped"))
